"""The tests of the reference's `e2e_test.rs`, by the same names and meanings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nats_taskflow.doors.flow_manager import CreateManagedInput, StepObservation
from nats_taskflow.errors import RevisionMismatch
from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus
from tests.running import an_input, running


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "taskflow.db")


def seed_input() -> CreateManagedInput:
    return an_input(
        controller_id="kate/bible-upload",
        goal="upload chapter 1",
        owner_session_key="agent:kate:session:abc",
        requester_origin="user-1",
        current_step="verse-0",
        state_json={"verses_done": 0, "total": 31},
    )


async def test_flow_state_survives_reopen(path: str) -> None:
    async with running(path) as run:
        flow = await run.manager.create_managed(seed_input())
        await run.manager.start_running(flow.id)
        await run.manager.update_state(flow.id, {"verses_done": 10}, "verse-10")
        parked = await run.manager.set_waiting(flow.id, {"kind": "manual"})
        assert parked.status is FlowStatus.WAITING
        assert parked.current_step == "verse-10"
        assert parked.state_json["verses_done"] == 10
    async with running(path) as run:
        reloaded = await run.manager.get(flow.id)
        assert reloaded == parked
        assert reloaded.state_json["total"] == 31
        assert reloaded.wait_json is not None
        assert reloaded.wait_json["kind"] == "manual"
        assert reloaded.revision == 3
        resumed = await run.manager.resume(reloaded.id)
        assert resumed.status is FlowStatus.RUNNING
        assert resumed.wait_json is None


async def test_concurrent_mutations_serialize_via_revision_retry(path: str) -> None:
    async with running(path) as run:
        flow = await run.manager.create_managed(seed_input())
        started = await run.manager.start_running(flow.id)
        assert started.revision == 1
        await asyncio.gather(run.manager.update_state(flow.id, {"a": 1}), run.manager.update_state(flow.id, {"b": 2}))
        final = await run.manager.get(flow.id)
        assert final is not None
        assert final.revision == 3
        assert (final.state_json["a"], final.state_json["b"]) == (1, 2)


async def test_heavy_contention_surfaces_revision_mismatch(path: str) -> None:
    async with running(path) as run:
        flow = await run.manager.create_managed(seed_input())
        await run.manager.start_running(flow.id)
        # Within one process a mutation without expected revision never loses; with one, all but the first do.
        free = [run.manager.update_state(flow.id, {f"k{i}": i}) for i in range(5)]
        tied = [run.manager.update_state(flow.id, {f"t{i}": i}, expected_revision=1) for i in range(5)]
        results = await asyncio.gather(*free, *tied, return_exceptions=True)
        conflicts = [result for result in results if isinstance(result, RevisionMismatch)]
        ok = [result for result in results if not isinstance(result, BaseException)]
        assert len(ok) + len(conflicts) == 10
        assert len(conflicts) == 5
        final = await run.manager.get(flow.id)
        assert final is not None
        assert final.revision == 1 + len(ok)


async def test_mirrored_steps_survive_reopen(path: str) -> None:
    async with running(path) as run:
        flow = await run.manager.create_mirrored(seed_input())
        for i in range(3):
            await run.manager.record_step_observation(
                StepObservation(
                    flow_id=flow.id, run_id=f"cron-{i}", task=f"task-{i}", status=FlowStepStatus.SUCCEEDED, result_json={"idx": i}
                )
            )
    async with running(path) as run:
        steps = await run.manager.list_steps(flow.id)
        assert len(steps) == 3
        for i, step in enumerate(steps):
            assert step.run_id == f"cron-{i}"
            assert step.result_json["idx"] == i
