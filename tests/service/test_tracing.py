"""Where tracing is on, each change that belongs to a trace has a short span; a wait is a link; and nothing of it can hurt the worker."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import generate_latest

from nats_taskflow import wiring
from nats_taskflow.config import Config
from nats_taskflow.config.settings import OtelConfig
from nats_taskflow.errors import ConfigError, Unavailable
from nats_taskflow.observe import trace as tracing
from nats_taskflow.observe.metrics import Metrics
from nats_taskflow.observe.otel import CountingExporter, OtelSpans, connect, span_id
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.observe.span import SpanSink
from tests.eventually import eventually
from tests.service.line import TOPIC, Line, living

ON = Config(otel=OtelConfig(enabled=True))


def trace(number: int, flags: str = "01") -> str:
    """A traceparent as somebody else's SDK writes it."""
    return f"00-{number:032x}-{number + 0xA0:016x}-{flags}"


@contextlib.asynccontextmanager
async def traced(spans: SpanSink, path: str = ":memory:") -> AsyncIterator[Line]:
    """A worker that hands its spans to `spans`."""
    with patch.object(wiring, "open_spans", lambda _: spans):
        async with living(path, ON) as line:
            yield line


def in_memory() -> tuple[OtelSpans, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return OtelSpans(SimpleSpanProcessor(exporter)), exporter


async def spans_of(exporter: InMemorySpanExporter, number: int) -> dict[str, ReadableSpan]:
    """Return the spans by name, once there are that many."""
    await eventually(lambda: len(exporter.get_finished_spans()) >= number)
    found = exporter.get_finished_spans()
    assert len(found) == number, [span.name for span in found]
    return {span.name: span for span in found}


async def park(line: Line, wait: dict[str, Any] | None = None, *, traceparent: str | None = trace(1)) -> str:
    """Start a flow and park it, both by commands that carry the traceparent."""
    headers = {"traceparent": traceparent} if traceparent else {}
    started = await line.outcome(await line.command("start", headers=headers, controller_id="kate/t", goal="g", current_step="draft"))
    flow_id: str = started["flow"]["id"]
    condition = wait or {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-1"}
    assert (await line.outcome(await line.command("wait", headers=headers, flow_id=flow_id, wait_condition=condition)))["ok"]
    return flow_id


async def reply(line: Line, traceparent: str | None) -> None:
    body = msgspec.json.encode({"correlation_id": "c-1", "payload": {"secret": "hunter2"}})
    await line.agent.publish(TOPIC, body, {"Nats-Msg-Id": "e-1", **({"traceparent": traceparent} if traceparent else {})})


async def test_a_change_has_a_short_span_under_the_context_that_its_message_brought() -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        flow_id = await park(line)
        waiting = (await spans_of(exporter, 3))["taskflow waiting"]
    assert {span.name for span in exporter.get_finished_spans()} == {"taskflow created", "taskflow started", "taskflow waiting"}
    assert waiting.parent is not None
    assert waiting.context is not None
    assert waiting.attributes is not None
    assert (waiting.parent.trace_id, waiting.parent.span_id, waiting.parent.is_remote) == (1, 0xA1, True)
    assert waiting.context.trace_id == 1
    assert waiting.kind is SpanKind.CONSUMER
    assert waiting.start_time is not None
    assert waiting.end_time is not None
    assert 0 <= waiting.end_time - waiting.start_time < 60e9
    assert dict(waiting.attributes) == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": "cmd-2",
        "messaging.message.conversation_id": "c-1",
        "taskflow.flow.id": flow_id,
        "taskflow.flow.status": "waiting",
        "taskflow.flow.controller_id": "kate/t",
        "taskflow.flow.revision": 2,
        "taskflow.flow.step": "draft",
        "taskflow.event.seq": 3,
        "taskflow.agent": "kate",
        "taskflow.actor": "agent:kate",
        "taskflow.wait.kind": "external_event",
    }
    assert waiting.resource.attributes["service.name"] == "taskflow"


@pytest.mark.parametrize("between", ["nothing", "progress", "restart"])
async def test_a_wait_is_no_span_but_a_link_from_the_one_that_ends_it(between: str, tmp_path: Any) -> None:
    spans, exporter = in_memory()
    leaf = {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-1"}
    pages = [{"kind": "external_event", "topic": TOPIC, "correlation_id": f"p-{n}"} for n in range(5)]
    async with traced(spans, str(tmp_path / "t.db")) as line:
        flow_id = await park(line, {"kind": "all_of", "conditions": [leaf, *pages]} if between == "progress" else leaf)
        for page in pages if between == "progress" else ():
            await line.reply({}, page["correlation_id"])
        await line.settled()
        await spans_of(exporter, 3)
        if between != "restart":
            line.advance(days=9)
            await reply(line, trace(2))
            await spans_of(exporter, 5 if between == "progress" else 4)
    if between == "restart":
        spans, exporter = in_memory()
        async with traced(spans, str(tmp_path / "t.db")) as line:
            await reply(line, trace(2))
            await spans_of(exporter, 1)
    resumed = next(
        span
        for span in exporter.get_finished_spans()
        if span.attributes and span.attributes["taskflow.flow.status"] == "running" and span.links
    )
    assert resumed.name == "taskflow resumed"
    assert resumed.context is not None
    assert resumed.parent is not None
    assert resumed.attributes is not None
    assert (resumed.context.trace_id, resumed.parent.span_id) == (2, 0xA2)
    link = resumed.links[0].context
    assert (link.trace_id, link.span_id) == (1, span_id(flow_id, 3)), "the span that parked the flow"
    assert resumed.attributes["taskflow.resume.cause"] == "event"
    assert resumed.attributes["taskflow.wait.kind"] == ("all_of" if between == "progress" else "external_event")
    assert resumed.attributes["messaging.destination.name"] == TOPIC
    assert resumed.attributes["messaging.message.id"] == "e-1"
    assert resumed.end_time is not None
    assert resumed.start_time is not None
    assert resumed.end_time - resumed.start_time < 60e9, "nine days are no span"
    assert "hunter2" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_the_link_leads_to_the_span_that_parked_the_flow() -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        await park(line)
        await reply(line, trace(2))
        found = await spans_of(exporter, 4)
    waiting, resumed = found["taskflow waiting"].context, found["taskflow resumed"].links[0].context
    assert waiting is not None
    assert (resumed.trace_id, resumed.span_id) == (waiting.trace_id, waiting.span_id)


async def test_a_reply_that_came_first_links_to_the_parking_that_took_it() -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        await reply(line, trace(2))
        await line.settled()
        flow_id = await park(line)
        resumed = (await spans_of(exporter, 4))["taskflow resumed"]
    assert resumed.parent is not None
    assert (resumed.parent.trace_id, resumed.parent.span_id) == (2, 0xA2)
    assert [(link.context.trace_id, link.context.span_id) for link in resumed.links] == [(1, span_id(flow_id, 3))]


async def test_a_timer_that_ends_a_traced_wait_begins_a_trace_that_links_back_and_any_other_is_no_span() -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        soon = {"kind": "manual", "timeout": "1h", "on_timeout": "fail"}
        await park(line, soon, traceparent=None)
        await park(line, soon)
        line.advance(hours=2)
        await line.services.waits.tick()
        failed = (await spans_of(exporter, 4))["taskflow failed"]
    assert failed.parent is None
    assert failed.kind is SpanKind.INTERNAL
    assert failed.context is not None
    assert failed.context.trace_id != 1
    assert failed.links[0].context.trace_id == 1
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert "messaging.system" not in failed.attributes


async def test_what_its_sender_does_not_sample_is_not_sampled_here() -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        await park(line, traceparent=trace(1, "00"))
        await reply(line, trace(2))
        resumed = (await spans_of(exporter, 1))["taskflow resumed"]
    assert resumed.links[0].context.trace_flags == 0


async def test_the_event_carries_the_incoming_traceparent_byte_for_byte_with_and_without_tracing() -> None:
    spans, _ = in_memory()
    async with traced(spans) as line:
        await park(line, traceparent=trace(1, "03"))
        await line.settled()
        on = await line.events()
    async with living(":memory:") as line:
        await park(line, traceparent=trace(1, "03"))
        await line.settled()
        off = await line.events()
    assert [event.headers["traceparent"] for event in on] == [event.headers["traceparent"] for event in off] == [trace(1, "03")] * 3


@pytest.mark.parametrize("verb, kind", [("cancel", "cancelled"), ("finish", "resumed")])
async def test_what_the_end_of_a_flow_brings_about_is_of_the_trace_that_ended_it(verb: str, kind: str) -> None:
    """A child that is cancelled with its parent, and a watcher that resumes."""
    async with living(":memory:") as line:
        ended = (await line.outcome(await line.command("start", controller_id="kate/p", goal="g")))["flow"]["id"]
        other = {"parent_flow_id": ended} if verb == "cancel" else {}
        follows = (await line.outcome(await line.command("start", controller_id="kate/f", goal="g", **other)))["flow"]["id"]
        watch = {"kind": "flow", "flow_id": ended}
        if verb == "finish":
            await line.outcome(await line.command("wait", flow_id=follows, wait_condition=watch))
        await line.outcome(await line.command(verb, headers={"traceparent": trace(9)}, flow_id=ended))
        await line.settled()
        events = [(msgspec.json.decode(stored.body), stored.headers.get("traceparent")) for stored in await line.events()]
    told = {(event["subject"], event["data"]["kind"]): traceparent for event, traceparent in events}
    assert told[follows, kind] == trace(9)


async def test_where_tracing_is_off_nobody_listens() -> None:
    async with living(":memory:") as line:
        assert line.services.tracing is None
        assert not any("SpanRecorder" in getattr(listener, "__qualname__", "") for listener in line.services.engine._listeners)
    spans, _ = in_memory()
    async with traced(spans) as line:  # the same question finds it where it is on
        assert any("SpanRecorder" in getattr(listener, "__qualname__", "") for listener in line.services.engine._listeners)


def test_where_tracing_is_off_not_a_line_of_the_sdk_is_loaded() -> None:
    named = "m.startswith('opentelemetry') or m == 'nats_taskflow.observe.otel'"
    program = f"import sys, nats_taskflow.app; sys.exit(bool([m for m in sys.modules if {named}]))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_without_the_extra_the_refusal_names_what_to_install() -> None:
    with (
        patch.dict(sys.modules, {"opentelemetry.sdk.trace": None, "opentelemetry.sdk": None}),
        patch.dict(sys.modules) as modules,
    ):
        modules.pop("nats_taskflow.observe.otel", None)
        with pytest.raises(ConfigError, match=r"pip install 'nats-taskflow\[otel\]'"):
            wiring.open_spans(lambda *_: None)


@pytest.mark.parametrize(
    "variables, told",
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: spans are sent as http/protobuf only"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE=many: must be a whole number from 1"),
    ],
)
def test_variables_that_cannot_be_met_are_refused(variables: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        connect(lambda *_: None, variables)


def test_the_sdk_s_own_switch_turns_it_off() -> None:
    assert connect(lambda *_: None, {"OTEL_SDK_DISABLED": "true"}) is None


class Hanging(SpanExporter):
    """A collector that takes a request and says nothing."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.let_go.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None: ...


async def test_an_exporter_that_hangs_costs_spans_that_are_counted_and_neither_the_work_nor_the_stop() -> None:
    metrics, hanging = Metrics(), Hanging()
    recorder = MetricsRecorder(metrics)
    exporter = CountingExporter(hanging, recorder.count_spans)
    spans = OtelSpans(
        BatchSpanProcessor(exporter, max_queue_size=4, max_export_batch_size=2, schedule_delay_millis=1), exporter=exporter, room=4
    )
    with patch.object(tracing, "_LAST", 0.2), patch.object(wiring, "open_spans", lambda _: spans):
        async with living(":memory:", ON) as line:
            assert line.services.tracing is not None
            line.services.tracing._queued = 8
            line.services.tracing._count = recorder.count_spans
            for n in range(20):
                await park(line, {"kind": "external_event", "topic": TOPIC, "correlation_id": f"c-{n}"})
            assert spans.full
    began = asyncio.get_running_loop().time()
    hanging.let_go.set()
    await eventually(lambda: exporter.seen == 4)
    assert asyncio.get_running_loop().time() - began < 30
    page = generate_latest(metrics.registry).decode()
    assert 'taskflow_spans_total{outcome="failed"} 4.0' in page
    assert f'taskflow_spans_total{{outcome="dropped"}} {3 * 20 - 4}.0' in page


async def test_a_defect_of_the_sdk_costs_a_span_and_not_the_worker() -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        with patch.object(spans, "begin", side_effect=RuntimeError("the SDK has a bad day")):
            await park(line)
            made = line.services.tracing
            assert made is not None
            await eventually(lambda: not made._queue)
        await reply(line, trace(2))
        await spans_of(exporter, 1)
        assert not line.failed


async def test_a_store_that_cannot_be_read_costs_the_link_only(tmp_path: Any) -> None:
    path = str(tmp_path / "t.db")
    spans, exporter = in_memory()
    async with traced(spans, path) as line:
        await park(line)
        await spans_of(exporter, 3)
    spans, exporter = in_memory()
    async with traced(spans, path) as line:
        with patch.object(line.store, "list_events", side_effect=Unavailable("the disk is on fire")):
            await reply(line, trace(2))
            resumed = (await spans_of(exporter, 1))["taskflow resumed"]
    assert resumed.links == ()


async def ended_waits(line: Line, number: int, traceparent: str | None) -> None:
    """Park flows and resume them."""
    for n in range(number):
        await park(line, {"kind": "external_event", "topic": TOPIC, "correlation_id": f"w-{n}"}, traceparent=traceparent)
    for n in range(number):
        await line.reply({}, f"w-{n}")
    await line.settled()


@pytest.mark.parametrize("traceparent", [None, trace(1)])
async def test_a_resume_asks_the_journal_nothing(traceparent: str | None) -> None:
    spans, exporter = in_memory()
    async with traced(spans) as line:
        with patch.object(line.store, "list_events", wraps=line.store.list_events) as asked:
            await ended_waits(line, 20, traceparent)
            await reply(line, trace(2))
            if traceparent:
                await eventually(lambda: len(exporter.get_finished_spans()) == 4 * 20)
            made = line.services.tracing
            assert made is not None
            await eventually(lambda: not made._queue)
        asked.assert_not_called()
    assert sum(len(span.links) for span in exporter.get_finished_spans()) == (20 if traceparent else 0)


async def test_waits_beyond_what_is_remembered_are_looked_up_and_only_so_often() -> None:
    spans, exporter = in_memory()
    with patch.object(tracing, "REMEMBERED", 5), patch.object(tracing, "LOOKUPS", 3):
        async with traced(spans) as line:
            for n in range(20):
                line.advance(seconds=1)
                await park(line, {"kind": "external_event", "topic": TOPIC, "correlation_id": f"w-{n}"})
            made = line.services.tracing
            assert made is not None
            assert len(made._waits._places) == 5
            with patch.object(line.store, "list_events", wraps=line.store.list_events) as asked:
                for n in range(20):
                    await line.reply({}, f"w-{n}")
                await line.settled()
                await eventually(lambda: not made._queue)
            assert asked.call_count == 3
            assert sum(len(span.links) for span in exporter.get_finished_spans()) == 5 + 3
