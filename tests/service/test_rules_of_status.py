"""What an operation does to a flow, where it is easily got wrong (SEMANTICS 2)."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus
from nats_taskflow.flow.stimuli import CancelFlow, FailFlow, FinishFlow, ObserveStep, ResumeFlow, Stimulus
from tests.e2e.checks import of_database
from tests.flows import arrives, cancel, counted, did, ends, external, get, kinds, park, start
from tests.running import running


def observed(flow_id: str, status: FlowStepStatus) -> ObserveStep:
    return ObserveStep(flow_id=flow_id, step_id="s", run_id="r", task="t", status=status, result_json={"n": 1})


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
async def test_a_run_may_be_observed_after_its_flow_has_ended(tmp_path: Path, end: str) -> None:
    """As the reference does: a run often reports its end a moment after its flow's. It changes nothing else, and ends nothing again."""
    path = str(tmp_path / "flows.db")
    async with running(path) as run:
        flow = await start(run)
        await did(run, observed(flow.id, FlowStepStatus.RUNNING))
        ending: dict[str, Stimulus] = {
            "finish": FinishFlow(flow_id=flow.id),
            "fail": FailFlow(flow_id=flow.id, reason="r"),
            "cancel": CancelFlow(flow_id=flow.id, cascade=False),
        }
        child = await start(run, parent=flow.id)
        before = await did(run, ending[end])
        counts = await counted(run)
        after = await did(run, observed(flow.id, FlowStepStatus.CANCELLED))
        assert (after.status, after.revision, after.updated_us) == (before.status, before.revision, before.updated_us)
        assert (await kinds(run, flow.id))[-1] == "step_observed"
        assert [step.status for step in await run.manager.list_steps(flow.id)] == [FlowStepStatus.CANCELLED]
        assert await counted(run) == counts
        assert (await get(run, child.id)).status is FlowStatus.RUNNING
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert of_database(database, "I-7", "I-8", "I-9", "I-11", "I-12") == []


async def test_a_watcher_is_not_told_again_when_a_run_of_the_ended_flow_is_observed() -> None:
    async with running() as run:
        flow = await start(run)
        await did(run, FinishFlow(flow_id=flow.id))
        await did(run, observed(flow.id, FlowStepStatus.SUCCEEDED))
        watcher = await park(run, ends(flow.id))
        assert watcher.status is FlowStatus.RUNNING
        assert (await cancel(run, flow.id)).error is not None


@pytest.mark.parametrize("state", [[1, 2], "text", 7, None])
async def test_a_resume_without_a_patch_leaves_a_state_that_is_no_object_as_it_is(state: Any) -> None:
    """It was replaced by `resume_meta`."""
    async with running() as run:
        flow = await start(run, state_json=state)
        await park(run, {"kind": "manual"}, flow.id)
        after = await did(run, ResumeFlow(flow_id=flow.id, reason="go on"))
        assert (after.status, after.state_json) == (FlowStatus.RUNNING, state)
        await park(run, {"kind": "manual"}, flow.id)
        assert (await did(run, ResumeFlow(flow_id=flow.id, patch={"a": 1}))).state_json["a"] == 1
        await get(run, flow.id)


async def test_a_reply_to_a_flow_whose_state_is_no_object_is_not_lost() -> None:
    """SEMANTICS R12: there is no other place for it."""
    async with running() as run:
        flow = await start(run, state_json=[1])
        await park(run, external(), flow.id)
        await arrives(run, "c", {"n": 1})
        assert (await get(run, flow.id)).state_json["resume_event"] == {"n": 1}


@pytest.mark.parametrize("back", [0, 1, 3600])
async def test_a_waiting_flow_is_cancelled_on_the_next_tick_whatever_the_clock_of_that_says(back: int) -> None:
    """The host's clock may be set back between the request and the tick."""
    async with running() as run:
        flow = await park(run, external())
        run.clock.advance(seconds=5)
        await run.manager.request_cancel(flow.id)
        report = await run.waits.tick_at(run.clock.now - timedelta(seconds=back))
        assert (report.cancelled, report.still_waiting) == (1, 0)
        assert (await get(run, flow.id)).status is FlowStatus.CANCELLED
