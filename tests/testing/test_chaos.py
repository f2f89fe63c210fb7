"""Chaos: whatever is done to messages and to the worker, the flows get where they should, and every promise holds afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nats_taskflow.client import Agent, Event, Flow, FlowClient, serve_delegate
from nats_taskflow.client.delegate_messages import DelegateCall
from nats_taskflow.testing import Chaos, TaskflowWorld
from tests.tiers import Rotated

TOPIC = "agent.delegate.reply"


async def played(world: TaskflowWorld, kate: FlowClient, count: int) -> list[str]:
    """Let an agent drive flows through a reply and a delegate to their end; returns the flows' ids."""
    agent = Agent(kate, name="play")

    @agent.on("resumed")
    async def go_on(flow: Flow, event: Event) -> None:
        # By the event, not by the state: that has moved on when a delivery comes twice.
        if event.correlation_id == f"{flow.state['name']}-1":
            await flow.advance({"asked": True})
            await flow.wait_reply(TOPIC, f"{flow.state['name']}-2", timeout="20d")
        else:
            await flow.finish({"answer": event.reply})

    world.run(agent.run())
    ids = []
    for number in range(count):
        flow = await kate.start(controller_id="kate/play", goal="play", state={"name": f"f{number}"})
        await flow.wait_reply(TOPIC, f"f{number}-1", timeout="20d")
        ids.append(flow.id)
    return ids


async def test_every_promise_holds_whatever_happens_to_messages(rotated: Rotated) -> None:
    for seed in rotated(range(5), 3):
        await every_promise_holds(seed)


async def every_promise_holds(seed: int) -> None:
    """Drive flows through what the seed brings about to their end, and judge."""
    async with TaskflowWorld(seed=seed) as world:
        kate = await world.client("kate")
        ids = await played(world, kate, 8)
        world.chaos.begin(drop=0.2, duplicate=0.2, reorder=0.3, delay=0.2, longest="5m")
        for round_ in (1, 2):
            for number in range(len(ids)):
                sending = world.run(kate.reply(TOPIC, f"f{number}-{round_}", number, event_id=f"e-{number}-{round_}"))
                while not sending.done():
                    await world.clock.advance("100ms")  # an acknowledgement that got lost: the client sends again
            await world.clock.advance("1h")
        world.chaos.calm()
        await world.clock.advance("1d")
        assert set(world.chaos.done) == {"drop", "duplicate", "reorder", "delay"}
        for number, flow_id in enumerate(ids):
            await world.assert_finished(flow_id, state={"answer": number})
        await world.assert_promises()


async def test_the_same_seed_does_the_same() -> None:
    async def done(seed: int) -> dict[str, int]:
        async with TaskflowWorld(seed=seed) as world:
            kate = await world.client("kate")
            world.chaos.begin(duplicate=0.3, reorder=0.3)
            await played(world, kate, 6)
            await world.settled()
            return dict(world.chaos.done)

    assert await done(7) == await done(7)
    assert len({tuple(sorted((await done(seed)).items())) for seed in range(8)}) > 1


async def test_a_kill_keeps_the_flows_and_what_came_meanwhile_is_not_lost(taskflow: TaskflowWorld, taskflow_chaos: Chaos) -> None:
    kate = await taskflow.client("kate")
    replied = await kate.start(controller_id="kate/x", goal="a reply while the worker is dead")
    await replied.wait_reply(TOPIC, "c-1", timeout="1d")
    slept = await kate.start(controller_id="kate/x", goal="a timer that falls due while the worker is dead")
    await slept.wait_timer("2h")
    await taskflow_chaos.kill()
    assert not taskflow.alive
    await kate.reply(TOPIC, "c-1", {"answer": 42})
    await taskflow.clock.advance("3d")
    with pytest.raises(AssertionError, match="was it killed, and not started again"):
        await taskflow.assert_waiting(replied)
    await taskflow_chaos.restart()
    # It came before the deadline, so it wins, although the deadline is long past (SEMANTICS R9).
    await taskflow.assert_running(replied, state={"resume_event": {"answer": 42}})
    await taskflow.assert_running(slept)


@pytest.mark.parametrize("statements", range(0, 40, 3))
async def test_a_kill_in_the_midst_of_a_commit_leaves_all_or_nothing(statements: int) -> None:
    async with TaskflowWorld(seed=statements) as world:
        kate = await world.client("kate", patience=3600.0)
        flow = await kate.start(controller_id="kate/x", goal="g")
        await flow.wait_reply(TOPIC, "c-1", timeout="20d")
        await world.chaos.kill_soon(within=statements + 1)
        await kate.reply(TOPIC, "c-1", {"answer": 42})
        await world.settled()
        await world.chaos.restart()
        it = await world.assert_running(flow, state={"resume_event": {"answer": 42}})
        assert it["revision"] == 3
        await world.assert_events(["created", "started", "waiting", "resumed"])
        await world.assert_promises()


async def test_a_client_waits_out_a_kill(taskflow: TaskflowWorld, taskflow_chaos: Chaos) -> None:
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="g")
    await taskflow_chaos.kill()
    advancing = taskflow.run(flow.advance({"n": 1}))
    await taskflow.clock.advance("5s")
    assert not advancing.done()
    await taskflow_chaos.restart()
    await taskflow.clock.advance("10s")
    assert (await advancing).state["n"] == 1


async def test_an_agent_that_is_killed_goes_on_where_it_was(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    handled: list[str] = []

    async def live(name: str, *, hangs: bool) -> None:
        agent = Agent(await taskflow.client("kate"), name="one")

        @agent.on("resumed")
        async def handle(flow: Flow, event: Event) -> None:
            handled.append(name)
            await flow.advance({"n": flow.state.get("n", 0) + 1})
            if hangs:
                await asyncio.Event().wait()
            await flow.finish()

        await agent.run()

    first = taskflow.run(live("first", hangs=True))
    flow = await kate.start(controller_id="kate/x", goal="g")
    await flow.wait_timer("1h")
    await taskflow.clock.advance("1h")
    assert handled == ["first"]
    first.cancel()
    taskflow.run(live("second", hangs=False))
    await taskflow.settled()
    assert handled == ["first", "second"]
    await taskflow.assert_finished(flow, state={"n": 1})  # the handler's command, sent twice, acted once


async def test_delegates_of_one_queue_share_the_requests(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    asked: dict[str, int] = {"a": 0, "b": 0}

    def of(name: str) -> Callable[[DelegateCall], Awaitable[str]]:
        async def answer(_: DelegateCall) -> str:
            asked[name] += 1
            return name

        return answer

    async with serve_delegate("svc.x", of("a"), on=kate), serve_delegate("svc.x", of("b"), on=kate):
        for number in range(6):
            flow = await kate.start(controller_id="kate/x", goal=str(number))
            await flow.delegate("svc.x", {}, timeout="1h")
        await taskflow.settled()
    assert asked == {"a": 3, "b": 3}


def test_dials_say_what_they_take() -> None:
    world = TaskflowWorld()
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        world.chaos.begin(delay=2)
    with pytest.raises(ValueError, match="lets nothing arrive"):
        world.chaos.begin(drop=1)
