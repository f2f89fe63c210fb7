"""Publish outcomes to the inboxes that asked for them: by turns of who asked, and with what is large in them as long as few wait."""

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
"""Of one agent so many wait at most; what comes then is told at once, without what it is stored without."""


class OutcomeSender:
    """Sends outcomes of commands that nobody waits for on a request."""

    def __init__(self, bus: Bus, recall: StoredOutcomes) -> None:
        self._bus = bus
        self._recall = recall
        self._turns = FairTurns(AdmissionBounds(_TURNS), AdmissionBounds(_TURNS_EACH))
        self._waiting: Counter[str] = Counter()
        self._errands = Errands()

    def send(self, inbox: str, whose: str, outcome: SubmissionOutcome) -> None:
        """Publish an outcome of one of `whose` commands; does not wait."""
        self._errands.start(self._send(inbox, whose, outcome), "outcome")

    async def finish(self, timeout: float) -> None:
        """Wait until everything is sent, at most `timeout` seconds."""
        await self._errands.finish(timeout)

    async def _send(self, inbox: str, whose: str, outcome: SubmissionOutcome) -> None:
        """Send one."""
        if self._waiting[whose] >= _MOST:
            await self._publish(inbox, outcome.result)
            return
        self._waiting[whose] += 1
        try:
            async with self._turns.on_demand(whose) as turn:
                await self._publish(inbox, await self._recall.told(outcome, turn))
        finally:
            self._waiting[whose] -= 1
            if not self._waiting[whose]:
                del self._waiting[whose]

    async def _publish(self, inbox: str, body: bytes) -> None:
        """Publish, within what the broker carries."""
        await self._bus.tell(inbox, fit(body, self._bus.max_payload))
