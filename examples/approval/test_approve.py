"""Three days in milliseconds: `pytest examples/approval`."""

from __future__ import annotations

import pytest
from approve import ask, go_on

from nats_taskflow.client import Flow
from nats_taskflow.testing import TaskflowWorld


@pytest.fixture
async def asked(taskflow: TaskflowWorld) -> Flow:
    """A mail that Ann has three days to approve, and the program that waits for her."""
    flow = await ask(await taskflow.client("kate"), "the newsletter", within="3d")
    taskflow.run(go_on(flow))
    return flow


async def test_she_is_asked(taskflow: TaskflowWorld, asked: Flow) -> None:
    it = await taskflow.assert_waiting(asked, kind="manual")
    assert it["wait"]["prompt"] == "Ann: may the newsletter go out?"


async def test_her_word_on_the_last_day_counts(taskflow: TaskflowWorld, asked: Flow) -> None:
    await taskflow.clock.advance("2d 23h 59m")
    await asked.resume({"approved": False}, reason="too long")
    await taskflow.assert_finished(asked, state={"sent": False, "because": "too long"})


async def test_after_the_deadline_nothing_is_sent(taskflow: TaskflowWorld, asked: Flow) -> None:
    await taskflow.clock.advance("3d")
    it = await taskflow.assert_failed(asked, reason="wait timed out")
    assert "sent" not in it["state"]
