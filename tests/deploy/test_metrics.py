"""Each metric says what happened: a metric that is declared and never fed is worse than none, for somebody watches it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest

from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.bus.port import Backlog, ConsumerSpec
from nats_taskflow.flow.stimuli import Reply
from nats_taskflow.observe.histogram import DurationHistogram
from nats_taskflow.observe.metrics import _ANSWERS, Metrics
from nats_taskflow.observe.probes import BacklogProbe, StoreProbe, WorkerProbes
from nats_taskflow.observe.recorder import MetricsRecorder, SlowSample
from tests.deploy.scraping import shows
from tests.e2e.stage import TOPIC, Agent, Stage
from tests.eventually import eventually
from tests.faults.disturbing import holding
from tests.running import running
from tests.service.acting import external, parked, timer
from tests.service.test_rules_of_damage import damage


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, line: str) -> float:
    """Return a sample of the page, by its name and labels as the page writes them."""
    found = [text for text in generate_latest(metrics.registry).decode().splitlines() if text.startswith(f"{line} ")]
    assert len(found) == 1, (line, found)
    return float(found[0].rpartition(" ")[2])


@pytest.mark.e2e
async def test_the_page_counts_what_a_day_brings(stage: Stage, kate: Agent) -> None:
    assert (await kate.api("wait", {"flow_id": await kate.start(), "wait_condition": {"kind": "timer", "at": soon()}}))["ok"]
    await kate.parked("c-1")
    await kate.reply(TOPIC, "c-1", {"n": 1})
    await kate.reply(TOPIC, "nobody-yet", {})
    page = await shows(stage, lambda page: page.get('taskflow_resumes_total{cause="timer"}') and page["taskflow_replies_unmatched"])
    assert page['taskflow_resumes_total{cause="event"}'] == 1
    assert page['taskflow_transitions_total{from="running",to="waiting"}'] == 2
    assert page['taskflow_transitions_total{from="waiting",to="running"}'] == 2
    assert page["taskflow_timer_lag_seconds_count"] == 1
    assert 0 <= page["taskflow_timer_lag_seconds_sum"] < 30
    assert page["taskflow_store_commit_duration_seconds_count"] == page["taskflow_store_batch_size_count"] > 0
    assert page["taskflow_replies_unmatched"] == 1
    assert page["taskflow_command_duration_seconds_count"] == 4  # two of each: start, wait; replies and queries are none
    assert 0 < page["taskflow_command_duration_seconds_sum"] < 60
    assert page['taskflow_store_size_bytes{file="db"}'] > 0
    assert page['taskflow_store_size_bytes{file="wal"}'] > 0
    assert page["taskflow_store_free_bytes"] > 0
    assert (page["taskflow_store_writable"], page["taskflow_nats_connected"]) == (1, 1)
    assert abs(page["taskflow_start_time_seconds"] - time.time()) < 600
    journal = 2 * 4  # created, started, waiting and resumed, of each flow
    await shows(stage, lambda page: page["taskflow_events_published_total"] == journal and page["taskflow_ready"] == 1)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_lock_that_others_hold_for_long_is_counted_and_lost_nothing(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    assert (await shows(stage, lambda page: page["taskflow_ready"] == 1))["taskflow_store_busy_total"] == 0
    with holding(stage.path, "BEGIN IMMEDIATE"):
        body = msgspec.json.encode({"flow_id": flow_id, "command_id": "a-1", "current_step": "later"})
        await kate.publish("taskflow.cmd.kate.advance", body)
        await shows(stage, lambda page: page["taskflow_store_busy_total"] >= 1 and page["taskflow_store_writable"] == 0, within=60)

    async def went_on() -> bool:
        return bool((await kate.flow(flow_id))["current_step"] == "later")

    await eventually(went_on, within=60)


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_an_outage_of_the_broker_shows_and_what_it_held_up_ages(stage: Stage, kate: Agent) -> None:
    await kate.api("wait", {"flow_id": await kate.start(), "wait_condition": {"kind": "timer", "at": soon(3.0)}})
    before = await shows(stage, lambda page: page["taskflow_nats_connected"] == 1 and page["taskflow_outbox_oldest_age_seconds"] == 0)
    assert before["taskflow_nats_reconnects_total"] == 0
    await stage.server.kill()
    held_up = await shows(stage, lambda page: page["taskflow_outbox_oldest_age_seconds"] > 1)
    assert (held_up["taskflow_nats_connected"], held_up["taskflow_ready"]) == (0, 0)
    await stage.server.start()
    after = await shows(stage, lambda page: page["taskflow_ready"] == 1 and page["taskflow_outbox_oldest_age_seconds"] == 0)
    assert after["taskflow_nats_reconnects_total"] == 1
    assert after["taskflow_events_published_total"] > before["taskflow_events_published_total"]


@pytest.mark.e2e
async def test_what_piled_up_in_the_stream_is_seen(stage: Stage, kate: Agent) -> None:
    await stage.stop()
    for n in range(50):
        await kate.reply(TOPIC, f"c-{n}", {})
    await stage.start()
    page = await shows(stage, lambda page: page["taskflow_replies_unmatched"] == 50)
    assert page['taskflow_nats_pending_messages{consumer="worker"}'] in range(51)
    await shows(stage, lambda page: page['taskflow_nats_pending_messages{consumer="worker"}'] == 0)


async def test_a_timer_that_nobody_acts_on_is_overdue(metrics: Metrics) -> None:
    async with running() as run:
        probes = WorkerProbes(run.engine, MemoryBus(), MetricsRecorder(metrics), outlets=(), flaws=list)
        await parked(run, timer(run, seconds=60))
        assert (await probes.sample(0.0)).overdue == 0
        run.clock.advance(seconds=90)
        assert (await probes.sample(0.0)).overdue == 30
        await run.waits.tick()
        assert (await probes.sample(0.0)).overdue == 0


async def test_what_lies_in_the_database_is_surveyed(metrics: Metrics) -> None:
    async with running() as run:
        recorder = MetricsRecorder(metrics)
        run.engine.listen(recorder.count_batch)
        probes = WorkerProbes(run.engine, MemoryBus(), recorder, outlets=(), flaws=list)
        probe = StoreProbe(run.engine, recorder)

        async def look() -> None:
            recorder.sample(await probes.sample(0.0))
            recorder.sample_slow(await probe.sample())

        await parked(run, timer(run, seconds=60))
        await run.engine.submit(Reply(topic=TOPIC, correlation_id="early", payload={}, event_id="e", arrived_us=run.clock()))
        run.clock.advance(seconds=90)
        await look()
        assert value(metrics, 'taskflow_waits{kind="timer"}') == 1
        assert value(metrics, "taskflow_wait_oldest_age_seconds") == 90
        assert value(metrics, "taskflow_replies_unmatched_oldest_age_seconds") == 90
        assert value(metrics, "taskflow_timers_overdue") == 1
        await run.waits.tick()
        run.clock.advance(seconds=2 * 86400)
        await run.engine.do(lambda transaction: transaction.expire_held(run.clock(), 10))
        await look()
    assert value(metrics, "taskflow_wait_oldest_age_seconds") == 0
    assert value(metrics, 'taskflow_waits{kind="timer"}') == 0
    assert value(metrics, 'taskflow_wait_duration_seconds_count{kind="timer"}') == 1
    assert value(metrics, 'taskflow_wait_duration_seconds_bucket{kind="timer",le="60.0"}') == 0
    assert value(metrics, 'taskflow_wait_duration_seconds_bucket{kind="timer",le="600.0"}') == 1
    assert value(metrics, "taskflow_replies_unmatched_oldest_age_seconds") == 0
    assert value(metrics, 'taskflow_dead_letters_kept{reason="expired"}') == 1
    recorder.sample_slow(SlowSample())
    assert value(metrics, 'taskflow_dead_letters_kept{reason="expired"}') == 0, "a reason that is gone stays on the page"


@given(st.lists(st.floats(0, 20) | st.sampled_from(_ANSWERS)))
def test_timings_say_what_the_librarys_histogram_says(seconds: list[float]) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the worker does
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine, reference = (
        DurationHistogram("t_seconds", "A text.", _ANSWERS, ours),
        Histogram("t_seconds", "A text.", buckets=_ANSWERS, registry=theirs),
    )
    for one in seconds:
        mine.observe(one)
        reference.observe(one)
    assert generate_latest(ours) == generate_latest(theirs)
    with pytest.raises(ValueError, match="Duplicated"):
        DurationHistogram("t_seconds", "Again.", (1.0,), ours)


async def test_what_waits_in_the_streams_is_asked_of_the_broker(metrics: Metrics) -> None:
    class Piled(MemoryBus):
        async def backlog(self, source: ConsumerSpec) -> Backlog:
            return Backlog(floor=0, delivered=0, pending=7)

    elsewhere = [ConsumerSpec(stream=name, consumer="taskflow") for name in ("A", "B")]
    await BacklogProbe(Piled(), (ConsumerSpec(stream="IN"), *elsewhere), MetricsRecorder(metrics)).count()
    assert value(metrics, 'taskflow_nats_pending_messages{consumer="worker"}') == 7
    assert value(metrics, 'taskflow_nats_pending_messages{consumer="taskflow"}') == 14


async def test_a_flow_that_cannot_be_read_is_counted_when_it_is_set_aside(tmp_path: Path, metrics: Metrics) -> None:
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        flow = await parked(run, external("c-1"))
    damage(path, "wait_json", "'{'", flow.id)
    async with running(str(path)) as run:
        run.engine.listen(MetricsRecorder(metrics).count_batch)
        reply = Reply(topic=TOPIC, correlation_id="c-1", payload={}, event_id="e", arrived_us=run.clock())
        await run.engine.submit(reply)
    assert value(metrics, "taskflow_flows_set_aside_total") == 1


def soon(seconds: float = 2.5) -> str:
    """Write a time that is about to come."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
