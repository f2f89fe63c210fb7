"""The month-long approval, in milliseconds: `pytest examples/month_long_approval`."""

from __future__ import annotations

from datetime import timedelta

import pytest
from approval import ANSWERS, APPROVERS, agent_for, ask_for_approval

from nats_taskflow.client import Flow
from nats_taskflow.testing import Chaos, TaskflowWorld


@pytest.fixture
async def approval(taskflow: TaskflowWorld) -> Flow:
    """An approval that was just asked for, and the agent that runs for it."""
    finance = await taskflow.client("finance")
    taskflow.run(agent_for(finance).run())
    return await ask_for_approval(finance, "two new servers", 12_000)


async def test_an_answer_on_the_first_day_ends_it(taskflow: TaskflowWorld, approval: Flow) -> None:
    await taskflow.assert_waiting(approval, topic=ANSWERS, corr=f"approval-{approval.id}", step="asked 1")
    await taskflow.clock.advance("3h")
    lead = await taskflow.client("lead")
    await lead.reply(ANSWERS, f"approval-{approval.id}", {"approved": True, "by": "the team lead"})
    await taskflow.assert_finished(approval, state={"approved": True, "by": "the team lead"})


async def test_a_reminder_each_week_and_somebody_else_after_two(taskflow: TaskflowWorld, approval: Flow) -> None:
    await taskflow.clock.advance("7d")
    await taskflow.assert_waiting(approval, step="asked 2")
    await taskflow.clock.advance("7d")
    it = await taskflow.assert_waiting(approval, step="asked 3")
    assert it["state"]["sent"] == ["team lead", "team lead", "head of department"]
    await approval.resume({"approved": False, "by": "the head of department"}, reason="too dear")
    await taskflow.assert_finished(approval, state={"approved": False, "by": "the head of department"})


async def test_after_a_month_without_any_answer_it_fails(taskflow: TaskflowWorld, approval: Flow) -> None:
    asked_at = taskflow.clock.now()
    await taskflow.clock.advance("29d")
    it = await taskflow.assert_failed(approval, reason="nobody decided within four weeks")
    assert it["state"]["sent"] == list(APPROVERS)
    assert it["updated_at"] == (asked_at + timedelta(days=28)).isoformat().replace("+00:00", "Z")
    await taskflow.assert_events(["created", "started", *["state_updated", "waiting", "resumed"] * 4, "failed"])


async def test_neither_a_killed_worker_nor_a_bad_network_changes_the_end(
    taskflow: TaskflowWorld, taskflow_chaos: Chaos, approval: Flow
) -> None:
    taskflow_chaos.begin(drop=0.2, duplicate=0.3, reorder=0.2, delay=0.2)
    await taskflow.clock.advance("10d")
    await taskflow_chaos.kill()
    await taskflow.clock.advance("2d")
    await taskflow_chaos.restart()
    await taskflow.clock.advance("20d")
    taskflow_chaos.calm()
    await taskflow.clock.advance("1h")
    await taskflow.assert_failed(approval, reason="nobody decided within four weeks")
