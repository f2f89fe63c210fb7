"""The unit tests of the reference's `engine.rs`, by the same names and meanings."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

from nats_taskflow.flow.conditions import Timer, from_value, to_value
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.services.wait_engine import TickReport
from nats_taskflow.store.records import ALL
from tests.eventually import eventually
from tests.running import Running, an_input, running


async def put_into_waiting(run: Running, condition: dict[str, Any]) -> Flow:
    flow = await run.manager.create_managed(an_input())
    await run.manager.start_running(flow.id)
    return await run.manager.set_waiting(flow.id, condition)


def timer(run: Running, **ahead: float) -> dict[str, Any]:
    return to_value(Timer(at=run.clock.now + timedelta(**ahead)))


async def test_timer_fires_when_now_past_deadline() -> None:
    async with running() as run:
        # A timer in the past is refused when it is set (SEMANTICS 3), so the clock passes it afterwards.
        flow = await put_into_waiting(run, timer(run, seconds=60))
        run.clock.advance(seconds=120)
        report = await run.waits.tick()
        assert (report.scanned, report.resumed) == (1, 1)
        after = await run.manager.get(flow.id)
        assert after is not None
        assert after.status is FlowStatus.RUNNING
        assert after.wait_json is None


async def test_timer_does_not_fire_before_deadline() -> None:
    async with running() as run:
        flow = await put_into_waiting(run, timer(run, seconds=60))
        report = await run.waits.tick()
        assert (report.scanned, report.resumed, report.still_waiting) == (1, 0, 1)
        after = await run.manager.get(flow.id)
        assert after is not None
        assert after.status is FlowStatus.WAITING


async def test_external_event_matches_resumes() -> None:
    async with running() as run:
        wait = {"kind": "external_event", "topic": "agent.delegate.reply", "correlation_id": "corr-42"}
        flow = await put_into_waiting(run, wait)
        report = await run.waits.tick()
        assert (report.resumed, report.still_waiting) == (0, 1)
        resumed = await run.waits.try_resume_external(flow.id, "agent.delegate.reply", "corr-42", {"answer": 42})
        assert resumed is not None
        assert resumed.status is FlowStatus.RUNNING
        assert resumed.wait_json is None
        assert resumed.state_json["resume_event"]["answer"] == 42


async def test_external_event_with_wrong_topic_or_id_is_noop() -> None:
    async with running() as run:
        flow = await put_into_waiting(run, {"kind": "external_event", "topic": "topic-A", "correlation_id": "id-1"})
        assert await run.waits.try_resume_external(flow.id, "topic-B", "id-1") is None
        assert await run.waits.try_resume_external(flow.id, "topic-A", "id-99") is None
        after = await run.manager.get(flow.id)
        assert after is not None
        assert after.status is FlowStatus.WAITING


async def test_manual_wait_ignored_by_tick() -> None:
    async with running() as run:
        flow = await put_into_waiting(run, {"kind": "manual"})
        report = await run.waits.tick()
        assert (report.scanned, report.resumed) == (1, 0)
        after = await run.manager.get(flow.id)
        assert after is not None
        assert after.status is FlowStatus.WAITING


async def test_cancel_requested_waiting_flips_to_cancelled_on_tick() -> None:
    async with running() as run:
        flow = await put_into_waiting(run, timer(run, seconds=60))
        await run.manager.request_cancel(flow.id)
        report = await run.waits.tick()
        assert (report.cancelled, report.resumed) == (1, 0)
        after = await run.manager.get(flow.id)
        assert after is not None
        assert after.status is FlowStatus.CANCELLED


async def test_run_loop_can_be_shut_down() -> None:
    async with running() as run:
        ticks = 0
        tick = run.waits.tick

        async def counted(passes: int = ALL) -> TickReport:
            nonlocal ticks
            ticks += 1
            return await tick(passes)

        run.waits.tick = counted  # type: ignore[method-assign]
        shutdown = asyncio.Event()
        loop = asyncio.create_task(run.waits.run(timedelta(milliseconds=20), shutdown))
        await eventually(lambda: ticks >= 2)
        shutdown.set()
        await asyncio.wait_for(loop, 1.0)


async def test_try_resume_external_on_unknown_flow_is_noop() -> None:
    async with running() as run:
        assert await run.waits.try_resume_external(uuid.uuid4(), "t", "c") is None


async def test_try_resume_external_on_running_flow_is_noop() -> None:
    async with running() as run:
        flow = await run.manager.create_managed(an_input())
        await run.manager.start_running(flow.id)
        assert await run.waits.try_resume_external(flow.id, "t", "c") is None


async def test_wait_condition_round_trip() -> None:
    async with running() as run:
        original = Timer(at=run.clock.now)
        assert from_value(to_value(original)) == original
