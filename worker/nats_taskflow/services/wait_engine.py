"""Move waiting flows on, when their time comes and by replies.

`tick` and `run` do the first, `try_resume_external` and `resume_correlated` the second.

A tick costs what is due, not what waits: due times are indexed, totals are counters. The loop sleeps until the next due time, at most for
its interval, and a commit that brings an earlier one wakes it. So timers fire within milliseconds.
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
from nats_taskflow.engine.id_mint import new_id
from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome
from nats_taskflow.errors import FlowError, InvalidRequest, Unavailable
from nats_taskflow.flow.ids import bad_id
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.stimuli import DeadlinePassed, FollowUp, Reply
from nats_taskflow.store.records import ALL, Batch, DueFlow, DueFlows
from nats_taskflow.units import SECOND, Micros, to_micros
from nats_taskflow.wire.headers import CORRELATION_ID, MSG_ID
from nats_taskflow.wire.inbound import Identity, digest

_DUE_AT_ONCE = 250
"""How many flows are moved before due times are read again, and before other work has its turn."""
_ERROR_PAUSE: Micros = SECOND
"""How long the loop rests after an error, so that a database that refuses is not asked without pause."""
_HELD_BACK_PAUSE: Micros = SECOND // 20
"""How long the loop rests while a deadline waits for replies that are not decided yet."""


class TickReport(msgspec.Struct, kw_only=True):
    """What a tick did.

    `scanned`: how many flows waited when it began. `errors`: how many could not be moved.
    """

    scanned: int = 0
    resumed: int = 0
    cancelled: int = 0
    still_waiting: int = 0
    errors: int = 0


class WaitEngine:
    """Moves the waiting flows of one engine.

    `on_moved` is called with how many seconds after its due time a flow was moved.

    `decided` returns the time up to which every reply is decided: a reply that came before a deadline wins (SEMANTICS R9), so the deadline
    waits for it, but no longer than `patience`. None: every reply is decided as it comes.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_moved: Callable[[float], None] = lambda _: None,
        decided: Callable[[], Awaitable[Micros]] | None = None,
        patience: Micros = 0,
    ) -> None:
        self._engine = engine
        self._on_moved = on_moved
        self._decided = decided
        self._patience = patience
        self.held_back = False
        """Whether a deadline has passed and waits for replies that are not decided."""
        self._woken = asyncio.Event()
        self._asleep_until: Micros | None = None
        self._last_due: list[DueFlow] = []
        self._has_failed = False
        self._log = structlog.get_logger("wait_engine")
        self._engine.listen(self._on_commit)

    async def tick(self, passes: int = ALL) -> TickReport:
        """Move everything that is due by now, or so many slices of it."""
        return await self._tick(self._engine.clock(), passes)

    async def tick_at(self, now: datetime) -> TickReport:
        """Move everything that is due by `now` (aware)."""
        return await self._tick(to_micros(now), ALL)

    async def _tick(self, now: Micros, passes: int) -> TickReport:
        """Submit what is due in slices, and count what became of it."""
        report = TickReport()
        left, self._has_failed = 0, False
        try:
            due = await self._due(now)
            report.scanned = due.waiting
            while (due.flows or due.ends) and not self._is_stuck(due, report):
                left += await self._pass(due, now, report)
                passes -= 1
                is_last = len(due.flows) < _DUE_AT_ONCE and not due.ends and not due.held_back
                if is_last or self._has_failed or not passes:
                    break
                due = await self._due(now)
        except FlowError as error:
            self._log.warning("tick_failed", why=error.message)
            self._note_failure(report)
        report.still_waiting = max(report.scanned - left, 0)
        return report

    def _is_stuck(self, due: DueFlows, report: TickReport) -> bool:
        """Return whether the same flows are due again although nothing went wrong.

        They would be due whatever is done, so the tick ends.
        """
        before, self._last_due = self._last_due, due.flows
        if not before or due.flows != before:
            return False
        self._log.warning("wait_not_moved", why=f"flow {before[0].flow_id} stays due whatever is done: run `taskflow db check`")
        self._note_failure(report)
        return True

    def _note_failure(self, report: TickReport) -> None:
        # The error may leave flows due: nothing more is tried in this tick, and the loop rests.
        report.errors += 1
        self._has_failed, self._last_due = True, []

    async def _due(self, now: Micros) -> DueFlows:
        """Read what is due.

        Where undecided replies hold everything back, ask first how far replies are decided by now.
        """
        store = self._engine.store
        if self._decided is None:
            return await store.due(now, _DUE_AT_ONCE)
        due = await store.due(now, _DUE_AT_ONCE, now - self._patience)
        if due.held_back and not due.flows:
            due = await store.due(now, _DUE_AT_ONCE, max(await self._decided(), now - self._patience))
        self.held_back = due.held_back
        return due

    async def _pass(self, due: DueFlows, now: Micros, report: TickReport) -> int:
        """Move due flows, and follow up ends. Returns how many flows no longer wait."""
        passed = [DeadlinePassed(flow_id=flow.flow_id, wait_id=flow.wait_id or 0, at_us=now) for flow in due.flows]
        ends = [FollowUp(flow_id=end.flow_id, cascade=end.cascade, trace=end.trace) for end in due.ends]
        stimuli: list[DeadlinePassed | FollowUp] = [*passed, *ends]
        outcomes = await asyncio.gather(*[self._engine.submit(stimulus) for stimulus in stimuli], return_exceptions=True)
        for failure in outcomes[len(passed) :]:
            if isinstance(failure, BaseException):
                raise failure
        return sum([self._count(report, flow.due_us, outcome) for flow, outcome in zip(due.flows, outcomes, strict=False)])

    def _count(self, report: TickReport, due_us: Micros, outcome: SubmissionOutcome | BaseException) -> int:
        """Count one outcome. Returns 1 when the flow no longer waits."""
        if isinstance(outcome, BaseException):
            if not isinstance(outcome, FlowError):
                raise outcome
            self._log.warning("wait_not_moved", why=outcome.message)
            self._note_failure(report)
            return 0
        if outcome.error is not None:  # the row cannot be read: the flow is set aside, and due again once an operator has released it
            report.errors += 1
            self._last_due = []
            return 1
        if outcome.name == "applied":
            self._on_moved(max(self._engine.clock() - due_us, 0) / SECOND)
        status = outcome.flow.status if outcome.flow is not None and outcome.name == "applied" else FlowStatus.WAITING
        report.resumed += status is FlowStatus.RUNNING
        report.cancelled += status is FlowStatus.CANCELLED
        return int(status is not FlowStatus.WAITING)

    async def try_resume_external(self, flow_id: str | UUID, topic: str, correlation_id: str, payload: Any = None) -> Flow | None:
        """Resume this flow if it waits for (topic, correlation_id).

        Returns the flow, or None when nothing matched. Nothing is kept for later: use `resume_correlated` for a reply that may be early.
        Raises `Unavailable` for store failures.
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
        """Apply a reply without knowing its flow, by SEMANTICS R1–R12.

        It resumes, progresses, is held, late or a duplicate. The same reply over the wire has the same identity. Raises `InvalidRequest`
        for ids that could not be matched (R1).
        """
        event_id = event_id if event_id is not None else new_id()
        for name, text in (("topic", topic), ("correlation_id", correlation_id), ("event_id", event_id)):
            if why := bad_id(text):
                raise InvalidRequest(f"{name} {why}", path=f"/{name}")
        key = f"{topic}\n{correlation_id}\n{event_id}"
        body = msgspec.json.encode(payload, order="sorted")
        target = str(flow_id) if flow_id is not None else None
        reply = Reply(
            topic=topic,
            correlation_id=correlation_id,
            payload=payload,
            event_id=event_id,
            arrived_us=to_micros(arrived_at) if arrived_at is not None else self._engine.clock(),
            key=key,
            flow_id=target,
        )
        identity = Identity(scope="reply", key=key, digest=digest(body, (target or "").encode()))
        raw = RawMessage(subject=topic, headers={CORRELATION_ID: correlation_id, MSG_ID: event_id}, body=body)
        return await self._engine.submit(reply, identity, raw=raw)

    async def run(self, interval: timedelta, shutdown: asyncio.Event) -> None:
        """Tick when something is due, at least every `interval`, until `shutdown` is set."""
        stopping = asyncio.ensure_future(shutdown.wait())
        try:
            while not shutdown.is_set():
                self._woken.clear()
                report = await self.tick(1)  # one slice; other work has its turn before the next
                if report.resumed or report.cancelled or report.errors:
                    # As the reference system spells it, since people search for it.
                    self._log.debug("wait engine tick", **msgspec.structs.asdict(report))
                await self._sleep(interval, stopping, _ERROR_PAUSE if self._has_failed else _HELD_BACK_PAUSE if self.held_back else 0)
        finally:
            stopping.cancel()

    async def _sleep(self, interval: timedelta, stopping: asyncio.Future[Any], rest: Micros) -> None:
        """Sleep until the next due time, the end of the interval, a wake-up or the stop.

        Sleeps at least for `rest`, unless the worker stops.
        """
        now = self._engine.clock()
        until = now + interval // timedelta(microseconds=1)
        try:
            due = await self._engine.store.next_due()
        except Unavailable:
            due, rest = None, _ERROR_PAUSE
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

    def _on_commit(self, batch: Batch) -> None:
        """Wake the loop for an end to follow up, or for an earlier due time than it knows."""
        if batch.unfinished or any(
            write.due_us is not None and (self._asleep_until is None or write.due_us < self._asleep_until) for write in batch.flows
        ):
            self._woken.set()
