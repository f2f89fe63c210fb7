"""Export spans by OpenTelemetry.

The only module that knows the SDK, loaded only where tracing is on (extra `otel`).

Names and attributes follow the semantic conventions for messaging, and are `taskflow.*` where those have none. The collector, the service
name, the sampler and the batches are the SDK's own settings: the OTEL_* variables.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

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
from nats_taskflow.observe.span import SpanCount, SpanPlace, SpanRecord
from nats_taskflow.version import program_version
from nats_taskflow.wire.headers import TRACEPARENT, trace_of

_PROTOCOL = "http/protobuf"
_TOPIC = "topic:"


def connect(count: SpanCount, environ: Mapping[str, str] = os.environ) -> OtelSpans | None:
    """Make the exporter to the collector of the OTEL_* variables.

    None where they switch the SDK off.

    Raises `ConfigError` for a variable that asks for something this program cannot do.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environ.get(name, _PROTOCOL) != _PROTOCOL:
            raise ConfigError(f"{name}={environ[name]}: spans are sent as {_PROTOCOL} only; a collector takes them on port 4318")
    size = environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "2048")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"OTEL_BSP_MAX_QUEUE_SIZE={size}: must be a whole number from 1")
    try:
        exporter = CountingExporter(OTLPSpanExporter(), count)
        return OtelSpans(BatchSpanProcessor(exporter, max_queue_size=int(size)), exporter=exporter, room=int(size))
    except ValueError as error:
        raise ConfigError(f"OTEL_…: {error}") from error


class CountingExporter(SpanExporter):
    """Counts what becomes of the spans of another exporter.

    `seen`: how many it was given so far.
    """

    def __init__(self, exporter: SpanExporter, count: SpanCount) -> None:
        self._exporter = exporter
        self._count = count
        self.seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. The exporter itself logs why it failed."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.seen += len(spans)
            self._count("exported" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()


class EntryIds(RandomIdGenerator):
    """Gives each span the id of its journal entry (`span_id`).

    So a later span can link to it, and nothing is stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.next = 0

    def generate_span_id(self) -> int:
        """Return the id of the span that begins now."""
        return self.next


class OtelSpans:
    """Exports spans through the SDK.

    `room`: how many the processor holds; beyond that it would drop some itself, uncounted.
    """

    def __init__(self, processor: SpanProcessor, *, exporter: CountingExporter | None = None, room: int = 0) -> None:
        ours = Resource({"service.name": "taskflow", "service.version": program_version()})
        self._ids = EntryIds()
        # The variables win. No exit handler: it would wait for a collector that hangs. The worker's stop closes this instead.
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

    def begin(self, record: SpanRecord) -> Span | None:
        """Begin the span under the context that the message brought.

        Where it brought none, as the root of a trace.
        """
        self._ids.next = span_id(record.flow_id, record.seq)
        parent = context_of(record.trace)
        by_worker = record.trace is None
        span = self._tracer.start_span(
            f"taskflow {record.kind.value}",
            context=set_span_in_context(NonRecordingSpan(parent)) if parent is not None else Context(),
            kind=SpanKind.INTERNAL if by_worker else SpanKind.CONSUMER,
            attributes=attributes(record),
            start_time=record.began_ns,
        )
        return span if span.is_recording() else None

    def end(self, span: Span, record: SpanRecord, parked: SpanPlace | None) -> None:
        """End the span when its batch was committed."""
        link = link_to(parked) if parked is not None else None
        if link is not None:
            span.add_link(link.context, link.attributes)
        if record.kind is EventKind.FAILED:
            span.set_status(Status(StatusCode.ERROR))
        if span.get_span_context().trace_flags.sampled:
            self._given += 1
        span.end(record.committed_ns)

    def close(self) -> None:
        """Send what is left. Blocks."""
        self._provider.shutdown()


def attributes(record: SpanRecord) -> dict[str, str | int]:
    """Return the span's attributes.

    Nothing of a payload is among them: others keep traces, and read them.
    """
    values: dict[str, str | int | None] = {
        "taskflow.flow.id": record.flow_id,
        "taskflow.flow.status": record.status.value,
        "taskflow.flow.controller_id": record.controller_id,
        "taskflow.flow.revision": record.revision,
        "taskflow.flow.step": record.step or None,
        "taskflow.event.seq": record.seq,
        "taskflow.agent": record.agent,
        "taskflow.actor": record.actor,
        "taskflow.wait.kind": record.wait_kind,
        "taskflow.resume.cause": record.resumed_by,
        "error.type": "flow_failed" if record.kind is EventKind.FAILED else None,
    }
    if record.trace is not None:
        values |= {
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": record.actor.removeprefix(_TOPIC) if record.actor.startswith(_TOPIC) else None,
            "messaging.message.id": record.cause,
            "messaging.message.conversation_id": record.correlation_id,
        }
    return {name: value for name, value in values.items() if value is not None}


def link_to(parked: SpanPlace) -> Link | None:
    """Return the link to the span of the entry that parked the flow."""
    request = context_of(parked.trace)
    if request is None:
        return None
    context = SpanContext(request.trace_id, span_id(parked.flow_id, parked.seq), is_remote=False, trace_flags=request.trace_flags)
    return Link(context, {"taskflow.link": "parked"})


def context_of(trace: str | None) -> SpanContext | None:
    """Read a traceparent; None where the text is not one."""
    if trace is None or trace_of({TRACEPARENT: trace}) is None:
        return None
    _, trace_id, parent, flags = trace.split("-")
    return SpanContext(int(trace_id, 16), int(parent, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def span_id(flow_id: str, seq: int) -> int:
    """Return the id of the span of a journal entry.

    Never 0, which OpenTelemetry takes for no id.
    """
    return int.from_bytes(hashlib.blake2b(f"{flow_id}:{seq}".encode(), digest_size=8).digest(), "big") or 1
