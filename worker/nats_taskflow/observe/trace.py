"""Trace what was committed: a short span for each journal entry whose message was part of a trace, made beside the hot path.

On the hot path `traceparent` is opaque text: journaled, published again byte for byte, never read. Where tracing is on, a listener of
committed batches notes what a span shows in a bounded queue, and a task makes the spans. A wait is never a span: the span that ends one
links to the span that parked the flow, which may be weeks old. Where anything is too slow, spans are dropped and counted, and the
worker goes on.

Where waits began is remembered: to ask the journal at each resume would cost a query for each message. It is asked only about waits from
before this start, or beyond what is remembered, and only so often.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import structlog

from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import ConfigError, FlowError, Refusal
from nats_taskflow.flow.conditions import MAX_LEAVES
from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.futures import new_future, resolve
from nats_taskflow.observe.log import LogEvent
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.store.records import Batch
from nats_taskflow.tasks import repeat
from nats_taskflow.units import SECOND

QUEUED = 4096
"""At most this many entries wait to become spans; what a span shows is about a kilobyte."""

_AT_ONCE = 64
"""Spans made between two looks of the event loop at other work: one takes about 30 µs."""

REMEMBERED = 20_000
"""Waits whose beginning is remembered: about four megabytes."""

LOOKS = 50
"""Look-ups in the journal in a second, at most: where there were more to do, a span goes without its link."""

_FULL = 0.1
"""Seconds to wait where the exporter is behind."""

_LAST = 3.0
"""Seconds for the last spans at the stop. A collector that is down must not hold it up."""


class SpanPlace(NamedTuple):
    """A journal entry that is part of a trace, as a link names it."""

    flow_id: str
    seq: int
    trace: str


class SpanRecord(NamedTuple):
    """What a span shows of a journal entry: no payload.

    `ends`: the entry ended a wait; `parked`: where that began, if within a trace; `known`: whether that is sure.
    """

    flow_id: str
    seq: int
    kind: EventKind
    began_ns: int
    committed_ns: int
    trace: str | None
    actor: str
    agent: str | None
    controller_id: str
    step: str
    revision: int
    status: FlowStatus
    cause: str | None
    correlation_id: str | None
    wait_kind: str | None = None
    resumed_by: str | None = None
    ends: bool = False
    parked: SpanPlace | None = None
    known: bool = True


class SpanSink(Protocol):
    """Where spans go. Nothing here blocks but `close`."""

    @property
    def full(self) -> bool:
        """Whether it could take no more at the moment."""
        ...

    def begin(self, told: SpanRecord) -> Any | None:
        """Begin a span; None where the sampler does not want it."""
        ...

    def end(self, span: Any, told: SpanRecord, parked: SpanPlace | None) -> None:
        """End the span, linked to the one that parked the flow."""
        ...

    def close(self) -> None:
        """Send what is left, for as long as that takes."""
        ...


def open_spans(tracker: MetricsRecorder) -> SpanSink | None:
    """Make the spans' way to the collector that the OTEL_* variables name; None where they switch the SDK off.

    Raises `ConfigError` where the SDK is not installed, or its variables ask for something it cannot do.
    """
    try:
        from nats_taskflow.observe.otel import connect  # noqa: PLC0415  # not a line of OpenTelemetry is loaded where tracing is off
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != "opentelemetry":
            raise
        message = "otel.enabled needs OpenTelemetry, which is not installed: pip install 'nats-taskflow[otel]', or set otel.enabled = false"
        raise ConfigError(message) from missing
    return connect(tracker.traced)


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
        """Return whether it is known where the wait began that has ended, and where, if within a trace; forget it."""
        known = flow_id in self._places
        return known, self._places.pop(flow_id, None)


class Tracing:
    """Makes spans of what one engine commits, until it is closed."""

    def __init__(self, engine: Engine, spans: SpanSink, tracker: MetricsRecorder, *, queued: int = QUEUED) -> None:
        self._engine = engine
        self._spans = spans
        self._tracker = tracker
        self._queue: deque[SpanRecord] = deque()
        self._queued = queued
        self._arrived = asyncio.Event()
        self._waits = RecentWaits()
        self._looks = 0
        self._looked = -1
        self._log = structlog.get_logger("tracing")
        engine.listen(self._heard)

    def _heard(self, batch: Batch) -> None:
        """Note what a committed batch has to tell. Called on the hot path."""
        dropped = 0
        for told in told_of(batch, self._engine.clock() * 1000, self._waits):
            if len(self._queue) < self._queued:
                self._queue.append(told)
            else:
                dropped += 1
        if dropped:
            self._tracker.traced("dropped", dropped)
        if self._queue:
            self._arrived.set()

    async def run(self) -> None:
        """Make spans until cancelled."""
        await repeat(self._step, "tracing")

    async def _step(self) -> None:
        """Wait for something to tell, and make spans of some of it."""
        if not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        await asyncio.sleep(_FULL if self._spans.full else 0)
        await self._write_some()

    async def close(self) -> None:
        """Make spans of what is left and have them sent, within a few seconds. Call it when `run` has ended."""
        loop = asyncio.get_running_loop()
        sent = new_future()

        def send() -> None:
            """Send the rest. On a thread of its own that does not keep the process: where the collector hangs, its answer may take 30 s."""
            self._spans.close()
            loop.call_soon_threadsafe(resolve, sent, None)

        try:
            async with asyncio.timeout(_LAST):
                while self._queue and not self._spans.full:
                    await self._write_some()
                threading.Thread(target=send, name="last spans", daemon=True).start()
                await sent
        except TimeoutError:
            self._log.warning(LogEvent.SPANS_LEFT, waited=_LAST)
        if self._queue:
            self._tracker.traced("dropped", len(self._queue))

    async def _write_some(self) -> None:
        """Make a few spans."""
        for _ in range(_AT_ONCE):
            if not self._queue or self._spans.full:
                return
            told = self._queue.popleft()
            try:
                await self._write(told)
            except Refusal:
                raise
            except Exception:  # noqa: BLE001  # a defect here, or in the SDK, costs a span and not the worker
                self._log.exception(LogEvent.SPAN_FAILED, flow_id=told.flow_id)
                self._tracker.traced("dropped", 1)

    async def _write(self, told: SpanRecord) -> None:
        """Make the span of one entry. One without a trace of its own has a span where it ends a wait that began within a trace."""
        parked = told.parked
        if told.trace is None and parked is None:
            parked = await self._parked(told)
            if parked is None:
                return
        span = self._spans.begin(told)
        if span is None:
            return
        if told.ends and parked is None:
            parked = await self._parked(told)
        self._spans.end(span, told, parked)

    async def _parked(self, told: SpanRecord) -> SpanPlace | None:
        """Look up where the wait began that the entry ended; None where that was no part of a trace.

        As a rule it is the entry before. Between them lies at most a progress of each leaf; observed steps may hide it, then the link is
        left out.
        """
        if told.known or not self._may_look():
            return None
        try:
            for back in (1, 2 * MAX_LEAVES):
                page = await self._engine.store.list_events(told.flow_id, after=told.seq, limit=back, newest=True)
                for event in page.items:
                    if event.kind is EventKind.WAITING:
                        return None if event.trace is None else SpanPlace(event.flow_id, event.seq, event.trace)
        except FlowError as bad:  # the span goes without a link: the store's own trouble is told elsewhere
            self._log.debug(LogEvent.LINK_NOT_FOUND, flow_id=told.flow_id, why=bad.message)
        return None

    def _may_look(self) -> bool:
        """Tell whether the journal may be asked once more in this second."""
        second = self._engine.clock() // SECOND
        if second != self._looked:
            self._looked, self._looks = second, 0
        self._looks += 1
        return self._looks <= LOOKS


def told_of(batch: Batch, committed_ns: int, waits: RecentWaits) -> Iterator[SpanRecord]:
    """Give what spans show of a batch: of the entries within a trace, and of those that end waits, which may have begun in one."""
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
        waited = start.payload["wait"] if start is not None else write.was.wait_json if write.was is not None else None
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
            wait_kind=waited["kind"] if waited and (ends or event.status is FlowStatus.WAITING) else None,
            resumed_by=event.payload["cause"] if event.kind is EventKind.RESUMED else None,
            ends=ends,
            parked=parked,
            known=known,
        )
