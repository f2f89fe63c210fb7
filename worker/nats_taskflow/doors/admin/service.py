"""Take operators' requests: questions go to the desk, interventions are carried out and logged (CONTRACT 6)."""

from __future__ import annotations

import structlog

from nats_taskflow.bus.endpoints import Endpoint
from nats_taskflow.doors.admin.dead_letters import DeadLetterDesk
from nats_taskflow.doors.admin.interventions import Interventions, actor_of
from nats_taskflow.doors.admin.queries import Queries
from nats_taskflow.engine.stored_outcomes import Turn
from nats_taskflow.flow.model import Flow
from nats_taskflow.wire.admin_codec import read_operation
from nats_taskflow.wire.admin_requests import OPERATIONS, Intervention, LettersPurge, LettersReplay
from nats_taskflow.wire.subjects import Subjects


class AdminService:
    """The operators' half of the micro service."""

    def __init__(self, desk: Queries, acting: Interventions, letters: DeadLetterDesk, subjects: Subjects) -> None:
        self._desk = desk
        self._acting = acting
        self._letters = letters
        self._subjects = subjects
        self._log = structlog.get_logger("operators")

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return an endpoint per verb."""
        return tuple(
            Endpoint(name=f"admin-{verb}", subject=self._subjects.admin(verb), metadata={"schema": _schema(verb)}) for verb in OPERATIONS
        )

    @property
    def catch_all(self) -> Endpoint:
        """Return the endpoint of the verbs that there are not."""
        return Endpoint(name="admin-other", subject=self._subjects.admin("*"))

    async def answered(self, verb: str, body: bytes, turn: Turn) -> bytes:
        """Carry out a request; a question when it is its `turn`. Raises the `FlowError` to answer with."""
        asked = read_operation(verb, body)
        if self._desk.answers(asked):
            await turn()
            return await self._desk.answer(asked)
        assert isinstance(asked, Intervention), "what is no question is an intervention"
        answer = await self._done(asked, turn)
        if not (isinstance(asked, LettersReplay | LettersPurge) and asked.dry_run):
            self._log.info("operator_intervened", verb=verb, kind=type(asked).__name__, actor=actor_of(asked), reason=asked.reason)
        return answer

    async def explain_to_agent(self, flow: Flow, agent: str, session: str) -> bytes:
        """Answer an agent why its flow stands where it stands."""
        return await self._desk.explain_to_agent(flow, agent, session)

    async def _done(self, asked: Intervention, turn: Turn) -> bytes:
        """Carry out an intervention."""
        if isinstance(asked, LettersReplay):
            return await self._letters.replay(asked)
        if isinstance(asked, LettersPurge):
            return await self._letters.purge(asked)
        return await self._acting.do(asked, turn)


def _schema(verb: str) -> str:
    """Name the schema of a verb's request."""
    action = next(iter(OPERATIONS[verb]))
    return f"schemas/admin.{verb}{'.' + action if action else ''}.json"
