"""`Agent.stop`: what is in hand comes to its end and is settled, nothing new is begun, and the next process has the rest at once."""

from __future__ import annotations

import asyncio

import pytest

from nats_taskflow.client import Agent, Event, Flow, FlowClient, InvalidRequest
from nats_taskflow.testing import TaskflowWorld


class Loop:
    """An agent that notes what it handles, and whose handlers take as long as they are told to."""

    def __init__(self, flows: FlowClient) -> None:
        self.agent = Agent(flows, name="loop", retry_first=1.0)
        self.begun: list[str] = []
        self.done: list[str] = []
        self.go_on = asyncio.Event()
        self.agent.on(controller="kate/work")(self.handle)

    async def handle(self, flow: Flow, event: Event) -> None:
        """Handle an event."""
        self.begun.append(event.kind)
        await self.go_on.wait()
        self.done.append(event.kind)


@pytest.fixture
async def kate(taskflow: TaskflowWorld) -> FlowClient:
    """The agent."""
    return await taskflow.client("kate")


async def begun(taskflow: TaskflowWorld, kate: FlowClient) -> tuple[Loop, asyncio.Task[None], Flow]:
    """Return a loop that has the first of a flow's three events in hand."""
    loop = Loop(kate)
    running = taskflow.run(loop.agent.run())
    flow = await kate.start(controller_id="kate/work", goal="be worked on")
    await flow.advance({"n": 1})
    await taskflow.settled()
    assert loop.begun == ["created"]
    return loop, running, flow


async def handled_next(taskflow: TaskflowWorld, kate: FlowClient) -> list[str]:
    """Return what the next loop of the same name gets, with no time passing."""
    following = Loop(kate)
    following.go_on.set()
    taskflow.run(following.agent.run())
    await taskflow.settled()
    return following.done


async def test_what_is_in_hand_is_finished_and_settled_and_the_rest_is_for_the_next_one(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    loop, running, flow = await begun(taskflow, kate)
    loop.agent.stop()
    await taskflow.clock.advance("1h")
    assert not running.done()
    await flow.advance({"n": 2})
    loop.go_on.set()
    await running
    assert loop.done == loop.begun == ["created"]
    assert await handled_next(taskflow, kate) == ["started", "state_updated", "state_updated"]


async def test_an_idle_loop_stops_at_once(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    loop = Loop(kate)
    running = taskflow.run(loop.agent.run())
    await taskflow.settled()
    await loop.agent.stop()
    await running


async def test_who_awaits_the_stop_waits_for_the_end_and_may_give_up_waiting(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    loop, running, _ = await begun(taskflow, kate)

    async def patient() -> None:
        await loop.agent.stop()

    waiting, given_up = asyncio.ensure_future(patient()), asyncio.ensure_future(patient())
    await taskflow.settled()
    given_up.cancel()
    await taskflow.settled()
    assert not waiting.done()
    loop.go_on.set()
    await waiting
    await running
    await loop.agent.stop()  # once more: nothing is left to wait for


async def test_a_handler_that_takes_longer_than_the_grace_is_cancelled_and_its_event_comes_again(
    taskflow: TaskflowWorld, kate: FlowClient
) -> None:
    loop, running, _ = await begun(taskflow, kate)
    loop.agent.stop("1m")
    await taskflow.clock.advance("59s")
    assert not running.done()
    await taskflow.clock.advance("1s")
    await running
    assert loop.done == []
    assert await handled_next(taskflow, kate) == ["created", "started", "state_updated"]


@pytest.mark.parametrize("first, second, after", [(None, "10s", "10s"), ("1h", "10s", "10s"), ("10s", "1h", "10s"), ("10s", None, "10s")])
async def test_a_repeat_can_only_shorten_the_grace(
    taskflow: TaskflowWorld, kate: FlowClient, first: str | None, second: str | None, after: str
) -> None:
    loop, running, _ = await begun(taskflow, kate)
    loop.agent.stop(first)
    loop.agent.stop(second)
    await taskflow.clock.advance("9s")
    assert not running.done()
    await taskflow.clock.advance(after)
    await running
    assert loop.begun == ["created"]


async def test_an_event_whose_handler_fails_during_the_stop_comes_again_before_those_behind_it(
    taskflow: TaskflowWorld, kate: FlowClient
) -> None:
    fails = asyncio.Event()
    agent = Agent(kate, name="loop", retry_first=1.0)

    @agent.on()
    async def handle(flow: Flow, event: Event) -> None:
        await fails.wait()
        raise RuntimeError("not today")

    running = taskflow.run(agent.run())
    await kate.start(controller_id="kate/work", goal="be worked on")
    await taskflow.settled()
    agent.stop()
    fails.set()
    await running
    following = Loop(kate)
    following.go_on.set()
    taskflow.run(following.agent.run())
    await taskflow.clock.advance("2s")
    assert following.done == ["created", "started"]


async def test_a_handler_may_stop_its_own_loop_but_not_wait_for_it(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    agent = Agent(kate, name="loop")
    said: list[str] = []

    @agent.on("started")
    async def handle(flow: Flow, event: Event) -> None:
        with pytest.raises(RuntimeError, match=r"call agent\.stop\(\) without await") as refused:
            await agent.stop()
        said.append(str(refused.value))
        await flow.finish()

    running = taskflow.run(agent.run())
    flow = await kate.start(controller_id="kate/work", goal="be worked on")
    await running
    assert said
    await taskflow.assert_finished(flow)


async def test_an_agent_that_was_stopped_stays_stopped(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    loop = Loop(kate)
    await loop.agent.stop()  # before it runs
    await kate.start(controller_id="kate/work", goal="be worked on")
    await loop.agent.run()
    await taskflow.settled()
    assert loop.begun == []


async def test_an_agent_runs_once_at_a_time(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    loop = Loop(kate)
    taskflow.run(loop.agent.run())
    await taskflow.settled()
    with pytest.raises(RuntimeError, match="the loop loop runs already"):
        await loop.agent.run()


async def test_a_grace_is_a_duration(taskflow: TaskflowWorld, kate: FlowClient) -> None:
    loop = Loop(kate)
    running = taskflow.run(loop.agent.run())
    await taskflow.settled()
    with pytest.raises(InvalidRequest, match="a duration is text"):
        loop.agent.stop(10)  # type: ignore[arg-type]
    assert not running.done()
