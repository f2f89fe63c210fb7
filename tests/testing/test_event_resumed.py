"""What a handler of `resumed` is told: the same as whoever waits for `flow.resumed()`."""

from __future__ import annotations

import pytest

from nats_taskflow.client import Agent, Event, Flow, Resumed
from nats_taskflow.testing import TaskflowWorld


@pytest.mark.parametrize("cause", ["event", "timer", "timeout", "manual"])
async def test_a_handler_tells_a_reply_a_timer_a_timeout_and_a_person_apart(taskflow: TaskflowWorld, cause: str) -> None:
    kate = await taskflow.client("kate")
    agent = Agent(kate, name="causes")
    told: list[Resumed | None] = []

    @agent.on()
    async def note(_: Flow, event: Event) -> None:
        told.append(event.resumed)

    taskflow.run(agent.run())
    flow = await kate.start(controller_id="kate/causes", goal="be resumed")
    if cause == "timer":
        await flow.wait_timer("1h")
    else:
        await flow.wait_reply("agent.delegate.reply", "c-1", timeout="1h")
    if cause == "event":
        await kate.reply("agent.delegate.reply", "c-1", {"answer": 42})
    elif cause == "manual":
        await flow.resume({"approved": True}, reason="read")
    await taskflow.clock.advance("1h")
    resumed = await flow.resumed()
    assert resumed.cause == cause
    assert told == [None, None, None, resumed], "of another event there is nothing to tell"
