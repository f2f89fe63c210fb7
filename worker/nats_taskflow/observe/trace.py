"""Make a short span for each journal entry within a trace.

Beside the hot path.

On the hot path `traceparent` is opaque text: journaled, published again byte for byte, never read. Where tracing is on, a listener puts
what the spans of a batch will show into a bounded queue, and a task makes the spans. A wait is never a span: it may last for weeks. The
span that ends a wait links to the span that began it. When the exporter is too slow, spans are dropped and counted; the worker goes on.

Where recent waits began is kept in memory, since a query of the journal at each resume would cost too much. The journal is queried only
about waits from before this start or beyond what is kept, and only so often.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

import structlog

from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError, Refusal
from nats_taskflow.flow.conditions import MAX_LEAVES
from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.futures import new_future, resolve
from nats_taskflow.observe.span import SpanCount, SpanPlace, SpanRecord, SpanSink
from nats_taskflow.store.records import Batch
from nats_taskflow.tasks import repeat
from nats_taskflow.units import SECOND

QUEUED = 4096
"""At most this many records wait to become spans; a span is about a kilobyte."""

_AT_ONCE = 64
"""Spans made before the event loop has a turn: one takes about 30 µs."""

REMEMBERED = 20_000
"""Waits whose beginning is remembered: about four megabytes."""

LOOKUPS = 50
"""Look-ups in the journal per second, at most. Beyond that, a span goes without its link."""

_EXPORTER_PAUSE = 0.1
"""Seconds to wait when the exporter is behind."""

_LAST = 3.0
"""Seconds for the last spans at the stop. A collector that is down must not hold the stop up."""


class RecentWaits:
    """Remembers where the latest waits began, and whether that was within a trace."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, SpanPlace | None] = OrderedDict()

    def begin(self, event: FlowEvent) -> None:
        """Remember a wait by its journal entry."""
        self._places[event.flow_id] = None if event.trace is None else SpanPlace(event.flow_id, event.seq, event.trace)
        if len(self._places) > REMEMBERED:
            self._places.popitem(last=False)

    def end(self, flow_id: str) -> tuple[bool, SpanPlace | None]:
        """Forget a wait that has ended.

        Returns whether its beginning is known, and where it was, if within a trace.
        """
        known = flow_id in self._places
        return known, self._places.pop(flow_id, None)


class SpanRecorder:
    """Makes spans of what one engine commits, until it is closed.

    `count` hears how many were dropped.
    """

    def __init__(self, engine: Engine, spans: SpanSink, count: SpanCount, *, queued: int = QUEUED) -> None:
        self._engine = engine
        self._spans = spans
        self._count = count
        self._queue: deque[SpanRecord] = deque()
        self._queued = queued
        self._arrived = asyncio.Event()
        self._waits = RecentWaits()
        self._lookups = 0
        self._lookup_second = -1
        self._log = structlog.get_logger("tracing")
        engine.listen(self._on_commit)

    def _on_commit(self, batch: Batch) -> None:
        """Queue what the spans of a batch will show. Called on the hot path."""
        dropped = 0
        for record in records_of(batch, self._engine.clock() * 1000, self._waits):
            if len(self._queue) < self._queued:
                self._queue.append(record)
            else:
                dropped += 1
        if dropped:
            self._count("dropped", dropped)
        if self._queue:
            self._arrived.set()

    async def run(self) -> None:
        """Make spans until cancelled."""
        await repeat(self._step, "tracing")

    async def _step(self) -> None:
        """Wait for a record, and make some spans."""
        if not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        await asyncio.sleep(_EXPORTER_PAUSE if self._spans.full else 0)
        await self._write_some()

    async def close(self) -> None:
        """Make and send the spans that are left, within a few seconds.

        Call it when `run` has ended.
        """
        loop = asyncio.get_running_loop()
        sent = new_future()

        def send() -> None:
            """Send the rest.

            A daemon thread does, since a collector that hangs may take 30 s: it must not keep the process.
            """
            self._spans.close()
            loop.call_soon_threadsafe(resolve, sent, None)

        try:
            async with asyncio.timeout(_LAST):
                while self._queue and not self._spans.full:
                    await self._write_some()
                threading.Thread(target=send, name="last spans", daemon=True).start()
                await sent
        except TimeoutError:
            self._log.warning("tracing.spans_left", waited=_LAST)
        if self._queue:
            self._count("dropped", len(self._queue))

    async def _write_some(self) -> None:
        """Make a few spans."""
        for _ in range(_AT_ONCE):
            if not self._queue or self._spans.full:
                return
            record = self._queue.popleft()
            try:
                await self._write(record)
            except Refusal:
                raise
            except Exception:  # noqa: BLE001  # a defect here, or in the SDK, costs a span and not the worker
                self._log.exception("tracing.span_failed", flow_id=record.flow_id)
                self._count("dropped", 1)

    async def _write(self, record: SpanRecord) -> None:
        """Make the span of one entry.

        An entry outside any trace has a span only if it ends a wait that began within one.
        """
        parked = record.parked
        if record.trace is None and parked is None:
            parked = await self._find_parked(record)
            if parked is None:
                return
        span = self._spans.begin(record)
        if span is None:
            return
        if record.ends and parked is None:
            parked = await self._find_parked(record)
        self._spans.end(span, record, parked)

    async def _find_parked(self, record: SpanRecord) -> SpanPlace | None:
        """Look up where the wait began that the entry ended.

        None where that was not part of a trace.

        It is nearly always the entry before. At most one entry of progress per leaf lies between, and observed steps, which may hide it:
        then the span has no link.
        """
        if record.known or not self._may_look_up():
            return None
        try:
            for back in (1, 2 * MAX_LEAVES):
                page = await self._engine.store.list_events(record.flow_id, after=record.seq, limit=back, newest=True)
                for event in page.items:
                    if event.kind is EventKind.WAITING:
                        return None if event.trace is None else SpanPlace(event.flow_id, event.seq, event.trace)
        except FlowError as error:  # only the link is lost: the store's own trouble is reported elsewhere
            self._log.debug("tracing.link_not_found", flow_id=record.flow_id, why=error.message)
        return None

    def _may_look_up(self) -> bool:
        """Count a look-up. Returns False when this second has had enough of them."""
        second = self._engine.clock() // SECOND
        if second != self._lookup_second:
            self._lookup_second, self._lookups = second, 0
        self._lookups += 1
        return self._lookups <= LOOKUPS


def records_of(batch: Batch, committed_ns: int, waits: RecentWaits) -> Iterator[SpanRecord]:
    """Yield what spans show of a batch.

    Of entries within a trace, and of those that end a wait, which may have begun in one.
    """
    flows = {write.flow.id: write for write in batch.flows}
    began: dict[str, FlowEvent] = {}
    for event in batch.events:
        if event.kind is EventKind.WAITING:
            began[event.flow_id] = event
            waits.begin(event)
        ends = event.previous_status is FlowStatus.WAITING and event.status is not FlowStatus.WAITING
        known, parked = waits.end(event.flow_id) if ends else (True, None)
        if event.trace is None and known and parked is None:
            continue
        write = flows[event.flow_id]
        start = began.get(event.flow_id)
        condition = start.payload["wait"] if start is not None else write.was.wait_json if write.was is not None else None
        at_ns = event.at_us * 1000
        yield SpanRecord(
            flow_id=event.flow_id,
            seq=event.seq,
            kind=event.kind,
            began_ns=min(at_ns, committed_ns),
            committed_ns=committed_ns,
            trace=event.trace,
            actor=event.actor,
            agent=agent_of(write.flow.owner_session_key),
            controller_id=write.flow.controller_id,
            step=event.current_step,
            revision=event.revision,
            status=event.status,
            cause=event.cause,
            correlation_id=event.correlation_id,
            wait_kind=condition["kind"] if condition and (ends or event.status is FlowStatus.WAITING) else None,
            resumed_by=event.payload["cause"] if event.kind is EventKind.RESUMED else None,
            ends=ends,
            parked=parked,
            known=known,
        )
