"""Make OpenTelemetry spans and send them to a collector: the one module that knows the SDK, loaded only where tracing is on (extra `otel`).

Names and attributes follow the semantic conventions for messaging, and `taskflow.*` where these have none. The collector, the service's
name, the sampler and the batches are the SDK's own settings: the OTEL_* variables.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from nats_taskflow.errors import ConfigError
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.observe.trace import SpanPlace, SpanRecord
from nats_taskflow.version import program_version
from nats_taskflow.wire.headers import TRACEPARENT, trace_of

Counted = Callable[[str, int], None]
"""Hears what became of how many spans: `exported` or `failed`. Called on another thread."""

_PROTOCOL = "http/protobuf"
_TOPIC = "topic:"


def connect(counted: Counted, environ: Mapping[str, str] = os.environ) -> OtelSpans | None:
    """Make the way to the collector; None where OTEL_SDK_DISABLED says so. Raises `ConfigError` for variables that cannot be met."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environ.get(name, _PROTOCOL) != _PROTOCOL:
            raise ConfigError(f"{name}={environ[name]}: spans are sent as {_PROTOCOL} only; a collector takes them on port 4318")
    size = environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "2048")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"OTEL_BSP_MAX_QUEUE_SIZE={size}: must be a whole number from 1")
    try:
        exporter = Counting(OTLPSpanExporter(), counted)
        return OtelSpans(BatchSpanProcessor(exporter, max_queue_size=int(size)), exporter=exporter, room=int(size))
    except ValueError as bad:
        raise ConfigError(f"OTEL_…: {bad}") from bad


class Counting(SpanExporter):
    """Counts what became of the spans that it has another exporter send. `seen`: how many those are."""

    def __init__(self, exporter: SpanExporter, counted: Counted) -> None:
        self._exporter = exporter
        self._counted = counted
        self.seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them. A failure is counted, and the exporter's own log line says why."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.seen += len(spans)
            self._counted("exported" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        """End the other exporter."""
        self._exporter.shutdown()


class OwnIds(RandomIdGenerator):
    """Gives each span the id that belongs to its journal entry, so that a later one can link to it without anything being stored."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0

    def generate_span_id(self) -> int:
        """Return the id that was set."""
        return self.next


class OtelSpans:
    """Spans for the SDK. `room`: how many the processor holds, beyond which it would drop some itself, uncounted."""

    def __init__(self, processor: SpanProcessor, *, exporter: Counting | None = None, room: int = 0) -> None:
        ours = Resource({"service.name": "taskflow", "service.version": program_version()})
        self._ids = OwnIds()
        # The variables win. The stop is the supervisor's: an exit handler would wait for a collector that hangs.
        self._provider = TracerProvider(
            resource=Resource.create().merge(ours).merge(OTELResourceDetector().detect()), shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("taskflow", program_version())
        self._exporter = exporter
        self._room = room
        self._given = 0

    @property
    def full(self) -> bool:
        """Whether the processor holds as many as it can."""
        return self._exporter is not None and self._given - self._exporter.seen >= self._room

    def begin(self, told: SpanRecord) -> Span | None:
        """Begin the span under the context that the message brought, as the root of a trace where it brought none."""
        self._ids.next = span_id(told.flow_id, told.seq)
        parent = context_of(told.trace)
        by_worker = told.trace is None
        span = self._tracer.start_span(
            f"taskflow {told.kind.value}",
            context=set_span_in_context(NonRecordingSpan(parent)) if parent is not None else Context(),
            kind=SpanKind.INTERNAL if by_worker else SpanKind.CONSUMER,
            attributes=attributes(told),
            start_time=told.began_ns,
        )
        return span if span.is_recording() else None

    def end(self, span: Span, told: SpanRecord, parked: SpanPlace | None) -> None:
        """End the span when its batch was committed."""
        linked = linked_to(parked) if parked is not None else None
        if linked is not None:
            span.add_link(linked.context, linked.attributes)
        if told.kind is EventKind.FAILED:
            span.set_status(Status(StatusCode.ERROR))
        if span.get_span_context().trace_flags.sampled:
            self._given += 1
        span.end(told.committed_ns)

    def close(self) -> None:
        """Send what is left; blocks."""
        self._provider.shutdown()


def attributes(told: SpanRecord) -> dict[str, str | int]:
    """Describe the entry. Nothing of a payload is here: traces are kept elsewhere, and read by others."""
    said: dict[str, str | int | None] = {
        "taskflow.flow.id": told.flow_id,
        "taskflow.flow.status": told.status.value,
        "taskflow.flow.controller_id": told.controller_id,
        "taskflow.flow.revision": told.revision,
        "taskflow.flow.step": told.step or None,
        "taskflow.event.seq": told.seq,
        "taskflow.agent": told.agent,
        "taskflow.actor": told.actor,
        "taskflow.wait.kind": told.wait_kind,
        "taskflow.resume.cause": told.resumed_by,
        "error.type": "flow_failed" if told.kind is EventKind.FAILED else None,
    }
    if told.trace is not None:
        said |= {
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": told.actor.removeprefix(_TOPIC) if told.actor.startswith(_TOPIC) else None,
            "messaging.message.id": told.cause,
            "messaging.message.conversation_id": told.correlation_id,
        }
    return {name: value for name, value in said.items() if value is not None}


def linked_to(parked: SpanPlace) -> Link | None:
    """Return the link to the span of the entry that parked the flow."""
    asked = context_of(parked.trace)
    if asked is None:
        return None
    context = SpanContext(asked.trace_id, span_id(parked.flow_id, parked.seq), is_remote=False, trace_flags=asked.trace_flags)
    return Link(context, {"taskflow.link": "parked"})


def context_of(trace: str | None) -> SpanContext | None:
    """Read a traceparent; None where it is none."""
    if trace is None or trace_of({TRACEPARENT: trace}) is None:
        return None
    _, trace_id, parent, flags = trace.split("-")
    return SpanContext(int(trace_id, 16), int(parent, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def span_id(flow_id: str, seq: int) -> int:
    """Return the id of the span of a journal entry: never 0, which is none."""
    return int.from_bytes(hashlib.blake2b(f"{flow_id}:{seq}".encode(), digest_size=8).digest(), "big") or 1
