"""Answer operators' requests.

Questions from the store, interventions through the engine, with a line in the log (CONTRACT 6).
"""

from __future__ import annotations

import structlog

from nats_taskflow.doors.admin.dead_letters import DeadLetters
from nats_taskflow.doors.admin.interventions import Interventions, actor_of
from nats_taskflow.doors.admin.queries import Queries
from nats_taskflow.engine.stored_outcomes import Turn
from nats_taskflow.wire.admin_codec import read_operation
from nats_taskflow.wire.admin_requests import Intervention, LettersPurge, LettersReplay


class AdminService:
    """Answers an operator's request, whatever it came by."""

    def __init__(self, queries: Queries, interventions: Interventions, letters: DeadLetters) -> None:
        self._queries = queries
        self._interventions = interventions
        self._letters = letters
        self._log = structlog.get_logger("operators")

    async def answer(self, verb: str, body: bytes, turn: Turn) -> bytes:
        """Carry out a request; a question when it is its `turn`.

        Raises the `FlowError` to answer with.
        """
        request = read_operation(verb, body)
        if self._queries.answers(request):
            await turn()
            return await self._queries.answer(request)
        assert isinstance(request, Intervention), "what is no question is an intervention"
        answer = await self._intervene(request, turn)
        if not (isinstance(request, LettersReplay | LettersPurge) and request.dry_run):
            self._log.info("operator_intervened", verb=verb, kind=type(request).__name__, actor=actor_of(request), reason=request.reason)
        return answer

    async def _intervene(self, request: Intervention, turn: Turn) -> bytes:
        """Carry out an intervention."""
        match request:
            case LettersReplay():
                return await self._letters.replay(request)
            case LettersPurge():
                return await self._letters.purge(request)
            case _:
                return await self._interventions.do(request, turn)
