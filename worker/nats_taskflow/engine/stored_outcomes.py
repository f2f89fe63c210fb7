"""Complete stored outcomes, which are kept without heavy states (SEMANTICS 6).

They are stored in a bounded size, and answered whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.flow.fold import fold
from nats_taskflow.flow.model import Flow, FlowStep
from nats_taskflow.store.port import Reads
from nats_taskflow.wire import outcomes
from nats_taskflow.wire.answers import AppliedAnswer

Turn = Callable[[], Awaitable[None]]
_AT_ONCE = 1000
_PAGES = 8
"""Pages of the journal, of 512 KiB each, that are folded for one answer. Of a longer one, the outcome is answered as it is stored."""


class StoredOutcomes:
    """Answers with whole outcomes: a repeat gets the bytes of the first answer."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def told(self, outcome: SubmissionOutcome, turn: Turn) -> bytes:
        """Return the answer to an outcome. Heavy parts are read in the asker's turn."""
        light = outcomes.read_light(outcome.result)
        if light is None:
            return outcome.result
        await turn()
        if outcome.flow is not None:
            return outcomes.encode_whole(light, outcome.flow, outcome.step)
        return await self.whole(outcome.result)

    async def whole(self, result: bytes) -> bytes:
        """Return a stored outcome as it was first answered.

        Returns it as it is stored where its flow is gone or its journal too long.
        """
        light = outcomes.read_light(result)
        if light is None:
            return result
        flow = await self._flow_at(light.flow.id, light.flow.revision)
        step = await self._step_of(light)
        if flow is None or (step is None and light.step):
            return result
        return outcomes.encode_whole(light, flow, step)

    async def _flow_at(self, flow_id: str, revision: int) -> Flow | None:
        """Return the flow as it was at a revision, from its row or its journal up to then."""
        now = await self._reads.get(flow_id)
        if now is None or now.revision == revision:
            return now
        flow, place = None, None
        for _ in range(_PAGES):
            page = await self._reads.list_events(flow_id, limit=_AT_ONCE, after=place)
            for event in page.items:
                if event.revision > revision:
                    return flow
                flow = fold(flow, event)
            if page.next is None:
                return flow
            place = page.next
        return None

    async def _step_of(self, light: AppliedAnswer) -> FlowStep | None:
        """Return the observed run in an outcome, unless it was observed again since."""
        if not light.step:
            return None
        step = await self._reads.get_step(light.flow.id, light.step.run_id)
        return step if step is not None and outcomes.is_shown_by(light.step, step) else None
