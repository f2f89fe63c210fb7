"""Drive waiting flows on: by passing time (`tick`, `run`) and by replies (`try_resume_external`, `resume_correlated`).

A tick costs what is due, not what waits: due times are indexed, totals are maintained counters. The run loop sleeps until the next due
time (or the interval, whichever is sooner) and is woken by a commit that brings an earlier one, so timers fire within milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog

from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.mint import new_id
from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome
from nats_taskflow.errors import FlowError, InvalidRequest, Unavailable
from nats_taskflow.flow.ids import bad_id
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.stimuli import DeadlinePassed, FollowUp, Reply
from nats_taskflow.store.records import ALL, Batch, DueFlow, DueFlows
from nats_taskflow.units import SECOND, Micros, to_micros
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.inbound import Identity, digest

_DUE_AT_ONCE = 250
"""How many flows are moved before it is asked again who is due, and before others have their turn."""
_CALM: Micros = SECOND
"""How long the loop rests after an error, so that a database that refuses is not asked in a circle."""
_LOOK_AGAIN: Micros = SECOND // 20
"""How long the loop rests while a deadline waits for replies that are not decided."""


class TickReport(msgspec.Struct, kw_only=True):
    """What a tick found and did. `scanned`: all waiting flows when it began; `errors`: flows that could not be moved."""

    scanned: int = 0
    resumed: int = 0
    cancelled: int = 0
    still_waiting: int = 0
    errors: int = 0


class WaitEngine:
    """Moves the waiting flows of one engine. `late` hears of each that time moved how many seconds after its due time that was.

    `decided` says until when every reply that came is decided: a deadline does not pass before one that came in time, but waits for it no
    longer than `patience` (SEMANTICS R9). None: every reply is decided as it comes.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        late: Callable[[float], None] = lambda _: None,
        decided: Callable[[], Awaitable[Micros]] | None = None,
        patience: Micros = 0,
    ) -> None:
        self._engine = engine
        self._late = late
        self._decided = decided
        self._patience = patience
        self.held_back = False
        """Whether a deadline has passed and waits for replies that are not decided."""
        self._woken = asyncio.Event()
        self._asleep_until: Micros | None = None
        self._passed: list[DueFlow] = []
        self._refused = False
        self._log = structlog.get_logger("wait_engine")
        self._engine.listen(self._heard)

    async def tick(self, passes: int = ALL) -> TickReport:
        """Let everything due by now happen, or so many slices of it."""
        return await self._tick(self._engine.clock(), passes)

    async def tick_at(self, now: datetime) -> TickReport:
        """Let everything due by `now` (aware) happen."""
        return await self._tick(to_micros(now), ALL)

    async def _tick(self, now: Micros, passes: int) -> TickReport:
        """Submit what is due, in slices, and count what became of it."""
        report = TickReport()
        left, self._refused = 0, False
        try:
            asked = await self._due(now)
            report.scanned = asked.waiting
            while (asked.flows or asked.ends) and not self._is_stuck(asked, report):
                left += await self._pass(asked, now, report)
                passes -= 1
                is_last = len(asked.flows) < _DUE_AT_ONCE and not asked.ends and not asked.held_back
                if is_last or self._refused or not passes:
                    break
                asked = await self._due(now)
        except FlowError as bad:
            self._log.warning("tick_failed", why=bad.message)
            self._refuse(report)
        report.still_waiting = max(report.scanned - left, 0)
        return report

    def _is_stuck(self, asked: DueFlows, report: TickReport) -> bool:
        """Tell whether what was done last is due again, though nothing went wrong: it would be, whatever is done."""
        before, self._passed = self._passed, asked.flows
        if not before or asked.flows != before:
            return False
        self._log.warning("wait_not_moved", why=f"flow {before[0].flow_id} stays due whatever is done: run `taskflow db check`")
        self._refuse(report)
        return True

    def _refuse(self, report: TickReport) -> None:
        """Count an error after which what is due may be due still: no more is tried in this tick, and the loop rests."""
        report.errors += 1
        self._refused, self._passed = True, []

    async def _due(self, now: Micros) -> DueFlows:
        """Ask what is due, and not only held back by replies; where nothing else is, ask how far those are decided by now."""
        store = self._engine.store
        if self._decided is None:
            return await store.due(now, _DUE_AT_ONCE)
        asked = await store.due(now, _DUE_AT_ONCE, now - self._patience)
        if asked.held_back and not asked.flows:
            asked = await store.due(now, _DUE_AT_ONCE, max(await self._decided(), now - self._patience))
        self.held_back = asked.held_back
        return asked

    async def _pass(self, asked: DueFlows, now: Micros, report: TickReport) -> int:
        """Let happen what is due, and follow up ends; returns how many flows no longer wait."""
        passed = [DeadlinePassed(flow_id=due.flow_id, wait_id=due.wait_id or 0, at_us=now) for due in asked.flows]
        ends = [FollowUp(flow_id=end.flow_id, cascade=end.cascade, trace=end.trace) for end in asked.ends]
        wanted: list[DeadlinePassed | FollowUp] = [*passed, *ends]
        outcomes = await asyncio.gather(*[self._engine.submit(what) for what in wanted], return_exceptions=True)
        for failure in outcomes[len(passed) :]:
            if isinstance(failure, BaseException):
                raise failure
        return sum([self._count(report, due.due_us, outcome) for due, outcome in zip(asked.flows, outcomes, strict=False)])

    def _count(self, report: TickReport, due: Micros, outcome: SubmissionOutcome | BaseException) -> int:
        """Count one result; returns 1 when the flow no longer waits."""
        if isinstance(outcome, BaseException):
            if not isinstance(outcome, FlowError):
                raise outcome
            self._log.warning("wait_not_moved", why=outcome.message)
            self._refuse(report)
            return 0
        if outcome.error is not None:  # its row cannot be read: it is set aside, and due again once an operator has released it
            report.errors += 1
            self._passed = []
            return 1
        if outcome.name == "applied":
            self._late(max(self._engine.clock() - due, 0) / SECOND)
        status = outcome.flow.status if outcome.flow is not None and outcome.name == "applied" else FlowStatus.WAITING
        report.resumed += status is FlowStatus.RUNNING
        report.cancelled += status is FlowStatus.CANCELLED
        return int(status is not FlowStatus.WAITING)

    async def try_resume_external(self, flow_id: str | UUID, topic: str, correlation_id: str, payload: Any = None) -> Flow | None:
        """Resume this flow if it waits for (topic, correlation_id): the flow if it was resumed, None when nothing matched.

        Keeps nothing for later: for a reply that may be early use `resume_correlated`. Raises `Unavailable` for store failures.
        """
        reply = Reply(
            topic=topic,
            correlation_id=correlation_id,
            payload=msgspec.UNSET if payload is None else payload,
            event_id="",
            arrived_us=self._engine.clock(),
            flow_id=str(flow_id),
            hold=False,
        )
        outcome = await self._engine.submit(reply)
        return outcome.flow if outcome.name == "resumed" else None

    async def resume_correlated(
        self,
        topic: str,
        correlation_id: str,
        payload: Any,
        *,
        event_id: str | None = None,
        arrived_at: datetime | None = None,
        flow_id: str | UUID | None = None,
    ) -> SubmissionOutcome:
        """Apply a reply without knowing its flow, by SEMANTICS R1–R12: it resumes, progresses, is held, late or a duplicate.

        The same reply over the wire has the same identity. Raises `InvalidRequest` for ids that could not be matched (R1).
        """
        known = event_id if event_id is not None else new_id()
        for name, text in (("topic", topic), ("correlation_id", correlation_id), ("event_id", known)):
            if why := bad_id(text):
                raise InvalidRequest(f"{name} {why}", path=f"/{name}")
        key = f"{topic}\n{correlation_id}\n{known}"
        body = msgspec.json.encode(payload, order="sorted")
        named = str(flow_id) if flow_id is not None else None
        reply = Reply(
            topic=topic,
            correlation_id=correlation_id,
            payload=payload,
            event_id=known,
            arrived_us=to_micros(arrived_at) if arrived_at is not None else self._engine.clock(),
            key=key,
            flow_id=named,
        )
        identity = Identity(scope="reply", key=key, digest=digest(body, (named or "").encode()))
        raw = RawMessage(subject=topic, headers={"Correlation-Id": correlation_id, MSG_ID: known}, body=body)
        return await self._engine.submit(reply, identity, raw=raw)

    async def run(self, interval: timedelta, shutdown: asyncio.Event) -> None:
        """Tick until `shutdown` is set: whenever something is due, and at least every `interval`."""
        stopping = asyncio.ensure_future(shutdown.wait())
        try:
            while not shutdown.is_set():
                self._woken.clear()
                report = await self.tick(1)  # who becomes due meanwhile has a turn in the next one
                if report.resumed or report.cancelled or report.errors:
                    # As the reference system spells it, since people search for it.
                    self._log.debug("wait engine tick", **msgspec.structs.asdict(report))
                await self._sleep(interval, stopping, _CALM if self._refused else _LOOK_AGAIN if self.held_back else 0)
        finally:
            stopping.cancel()

    async def _sleep(self, interval: timedelta, stopping: asyncio.Future[Any], rest: Micros) -> None:
        """Sleep until the next due time, the interval's end, an earlier timer, or the stop; at least for `rest`."""
        now = self._engine.clock()
        until = now + interval // timedelta(microseconds=1)
        try:
            due = await self._engine.store.next_due()
        except Unavailable:
            due, rest = None, _CALM
        if due is not None:
            until = min(until, max(due, now + rest) if rest else due)
        self._asleep_until = until
        if not self._woken.is_set() or rest:
            woken = asyncio.ensure_future(self._woken.wait())
            delay = max(until - self._engine.clock(), 0) / SECOND
            try:
                await asyncio.wait({stopping} if rest else {woken, stopping}, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
        self._asleep_until = None

    def _heard(self, batch: Batch) -> None:
        """Wake the loop when a commit brought something due before it would wake by itself, or an end to follow up."""
        if batch.unfinished or any(
            write.due_us is not None and (self._asleep_until is None or write.due_us < self._asleep_until) for write in batch.flows
        ):
            self._woken.set()
