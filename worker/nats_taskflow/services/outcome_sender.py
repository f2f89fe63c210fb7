"""Publish outcomes to the inboxes that commands named, in turns between agents.

An outcome is stored without its large parts. They are read again for the answer, as long as few answers of the agent wait.
"""

from __future__ import annotations

from collections import Counter

from nats_taskflow.bus.port import Bus
from nats_taskflow.engine.stored_outcomes import StoredOutcomes
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.tasks import Errands
from nats_taskflow.turns import AdmissionBounds, FairTurns
from nats_taskflow.wire.outcomes import fit

_TURNS, _TURNS_EACH = 8, 2
_MOST = 64
"""How many answers of one agent may wait. Beyond that, an answer is sent at once, without its large parts."""


class OutcomeSender:
    """Sends outcomes of commands that came over a stream and named an inbox."""

    def __init__(self, bus: Bus, recall: StoredOutcomes) -> None:
        self._bus = bus
        self._recall = recall
        self._turns = FairTurns(AdmissionBounds(_TURNS), AdmissionBounds(_TURNS_EACH))
        self._waiting: Counter[str] = Counter()
        self._errands = Errands()

    def send(self, inbox: str, scope: str, outcome: SubmissionOutcome) -> None:
        """Publish the outcome of a command of `scope` to its inbox. Does not wait."""
        self._errands.start(self._send(inbox, scope, outcome), "outcome")

    async def finish(self, timeout: float) -> None:
        """Wait until everything is sent, at most `timeout` seconds."""
        await self._errands.finish(timeout)

    async def _send(self, inbox: str, scope: str, outcome: SubmissionOutcome) -> None:
        """Publish an outcome when it is its agent's turn."""
        if self._waiting[scope] >= _MOST:
            await self._publish(inbox, outcome.result)
            return
        self._waiting[scope] += 1
        try:
            async with self._turns.on_demand(scope) as turn:
                await self._publish(inbox, await self._recall.told(outcome, turn))
        finally:
            self._waiting[scope] -= 1
            if not self._waiting[scope]:
                del self._waiting[scope]

    async def _publish(self, inbox: str, body: bytes) -> None:
        await self._bus.tell(inbox, fit(body, self._bus.max_payload))
