"""`Agent`: events are handled in order, again after a failure, and exactly once in effect by processes that are killed half-way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.client import Agent, Event, Flow, FlowClient, IllegalTransition, InvalidRequest
from nats_taskflow.client.command_ids import CURRENT, CommandIds
from nats_taskflow.client.commands import Door
from tests.e2e.stage import TOPIC, Stage, World
from tests.e2e.stage import Agent as Plain
from tests.eventually import eventually

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]

# The first run of the handler stops after its third command, and says so; the second one goes through.
KILLED = """
import asyncio, os, sys
from pathlib import Path
from nats_taskflow import Agent, Event, Flow

url, marks, who = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
agent = Agent(url, agent=who, name=who)


@agent.on("resumed", controller="kate/*")
async def go_on(flow: Flow, event: Event) -> None:
    (marks / f"run-{os.getpid()}").touch()
    await flow.advance({"first": os.getpid()})
    child = await flow.flows.start(controller_id="child/x", goal="be started once", parent=flow)
    await flow.flows.reply("agent.delegate.reply", f"{who}-told", {"pid": os.getpid()})
    if not (marks / "second-time").exists():
        (marks / "half-way").touch()
        await asyncio.Event().wait()
    await flow.advance({"child": child.id})
    await flow.finish({"answer": event.reply})


asyncio.run(agent.run())
"""


@pytest.fixture
async def flows(world: World, agent: Plain) -> AsyncIterator[FlowClient]:
    """The agent, by the client."""
    async with FlowClient.connect(world.url, agent=agent.name) as made:
        yield made


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[asyncio.Task[None]]:
    """Run an agent's loop in this process."""
    task = asyncio.ensure_future(agent.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def parked(flows: FlowClient, correlation_id: str, controller: str = "kate/triage") -> Flow:
    flow = await flows.start(controller_id=controller, goal="wait for an answer")
    await flow.wait_reply(TOPIC, correlation_id)
    return flow


async def status(flows: FlowClient, flow: Flow) -> str:
    return (await flows.get(flow.id)).status


async def test_an_agent_that_is_killed_in_its_handler_goes_on_and_nothing_happens_twice(
    world: World, flows: FlowClient, agent: Plain, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    program = tmp_path / "agent.py"
    program.write_text(KILLED, encoding="utf-8")
    flow = await parked(flows, f"{agent.name}-first")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = (sys.executable, str(program), world.url, str(marks), agent.name)
    first = await asyncio.create_subprocess_exec(*command, env=environment)
    await flows.reply(TOPIC, f"{agent.name}-first", {"answer": 42})
    await eventually((marks / "half-way").exists, within=30)
    first.send_signal(signal.SIGKILL)
    await first.wait()
    (marks / "second-time").touch()
    second = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        await eventually(lambda: finished(flows, flow), within=30)
    finally:
        second.kill()
        await second.wait()
    assert len(list(marks.glob("run-*"))) == 2
    kinds = await agent.kinds(flow.id)
    assert kinds == ["created", "started", "waiting", "resumed", "state_updated", "state_updated", "finished"]
    shown = await flow.refresh()
    assert shown.state["first"] == first.pid, "what the first run sent counts"
    assert shown.state["answer"] == {"answer": 42}
    children = [one async for one in flows.list() if one.snapshot.controller_id == "child/x"]
    assert [child.id for child in children] == [shown.state["child"]]
    waiter = await parked(flows, f"{agent.name}-told")
    assert (await waiter.refresh()).state["resume_event"] == {"pid": first.pid}


@pytest.mark.parametrize("door", ["cmd", "api"])
async def test_what_a_handlers_first_run_sent_counts_though_the_second_says_something_else(flows: FlowClient, door: Door) -> None:
    flow = await flows.start(controller_id="kate/x", goal="be told twice")
    event = await anext(flow.events())
    outcomes = []
    for run in (1, 2):
        token = CURRENT.set(CommandIds(event, "loop"))
        outcomes.append(await flow.advance({"run": run}, door=door))
        with pytest.raises(IllegalTransition):  # a refusal is an outcome too
            await flow.resume(reason=f"run {run}", door=door)
        CURRENT.reset(token)
    assert outcomes[0] == outcomes[1]
    assert (await flow.refresh()).state == {"run": 1}
    assert flow.revision == 2


async def finished(flows: FlowClient, flow: Flow) -> bool:
    return await status(flows, flow) == "finished"


async def test_a_handler_that_fails_is_called_again_and_the_flows_next_events_wait_for_it(flows: FlowClient) -> None:
    agent = Agent(flows, name=flows.agent, retry_first=0.05, retry_last=0.2)
    seen: list[tuple[str, int]] = []
    failures = 3

    @agent.on(controller="kate/hard")
    async def handle(flow: Flow, event: Event) -> None:
        nonlocal failures
        if event.seq == 2 and failures:
            failures -= 1
            raise RuntimeError("not yet")
        seen.append((flow.id, event.seq))

    @agent.on("created", controller="kate/easy")
    async def other(flow: Flow, event: Event) -> None:
        seen.append((flow.id, event.seq))

    hard = await flows.start(controller_id="kate/hard", goal="be hard")
    for number in range(5):
        await hard.advance({"n": number})
    easy = await flows.start(controller_id="kate/easy", goal="be easy")
    async with running(agent):
        await eventually(lambda: len([1 for flow, _ in seen if flow == hard.id]) == 7, within=30)
        await eventually(lambda: (easy.id, 1) in seen, within=30)
    assert [seq for flow, seq in seen if flow == hard.id] == [1, 2, 3, 4, 5, 6, 7]
    assert [seq for flow, seq in seen if flow == easy.id] == [1]
    assert failures == 0


async def test_a_loop_goes_on_where_it_stopped_and_another_loop_has_its_own_place(flows: FlowClient) -> None:
    seen: dict[str, list[str]] = {"one": [], "two": []}

    def loop(name: str) -> Agent:
        agent = Agent(flows, name=f"{flows.agent}-{name}")

        @agent.on("created")
        async def note(flow: Flow, event: Event) -> None:
            seen[name].append(flow.id)

        return agent

    first = await flows.start(controller_id="kate/x", goal="first")
    async with running(loop("one")):
        await eventually(lambda: seen["one"] == [first.id], within=20)
        await eventually(lambda: settled(flows, f"{flows.agent}-one"), within=20)
    second = await flows.start(controller_id="kate/x", goal="second")
    async with running(loop("one")), running(loop("two")):
        await eventually(lambda: seen["one"] == [first.id, second.id], within=20)
        await eventually(lambda: seen["two"] == [first.id, second.id], within=20)


async def settled(flows: FlowClient, durable: str) -> bool:
    """Tell whether the loop has nothing in hand."""
    client: Any = flows.transport._client  # type: ignore[attr-defined]
    info = await client.jetstream().consumer_info("TASKFLOW_EVT", durable)
    return bool(info.num_ack_pending == 0 and info.num_pending == 0)


async def asking(flows: FlowClient, durable: str) -> bool:
    """Tell whether anybody asks the broker for the loop's events."""
    client: Any = flows.transport._client  # type: ignore[attr-defined]
    return bool((await client.jetstream().consumer_info("TASKFLOW_EVT", durable)).num_waiting)


async def redelivered(flows: FlowClient, durable: str) -> int:
    """Count the loop's events in hand that the broker has delivered more than once."""
    client: Any = flows.transport._client  # type: ignore[attr-defined]
    return int((await client.jetstream().consumer_info("TASKFLOW_EVT", durable)).num_redelivered)


async def test_a_long_handler_keeps_its_event_and_other_flows_do_not_wait_for_it(flows: FlowClient) -> None:
    agent = Agent(flows, name=flows.agent, ack_wait=1.0)
    calls: list[str] = []
    release = asyncio.Event()

    @agent.on("created")
    async def handle(flow: Flow, event: Event) -> None:
        calls.append(event.controller_id)
        if event.controller_id == "kate/slow":
            await release.wait()

    await flows.start(controller_id="kate/slow", goal="take long")
    async with running(agent):
        await eventually(lambda: calls == ["kate/slow"], within=20)
        await flows.start(controller_id="kate/quick", goal="be quick")
        await eventually(lambda: calls == ["kate/slow", "kate/quick"], within=20)
        for number in range(4):  # each waits for a timer of a second, so that the redelivery timer runs out three times
            flow = await flows.start(controller_id="kate/quick", goal="let time pass")
            await flow.wait_timer("1s")
            await flow.resumed(timeout="20s")
            assert await redelivered(flows, flows.agent) == 0, f"given away after {number} s"
        release.set()
        await eventually(lambda: settled(flows, flows.agent), within=20)
    assert calls == ["kate/slow", *["kate/quick"] * 5]


async def test_events_go_on_when_the_broker_is_killed_under_the_loop(stage: Stage) -> None:
    async with FlowClient.connect(stage.url, agent="kate", patience=60.0) as flows:
        agent = Agent(flows, name="steady")
        seen: list[int] = []

        @agent.on(controller="kate/steady")
        async def handle(flow: Flow, event: Event) -> None:
            seen.append(event.seq)

        async with running(agent):
            flow = await flows.start(controller_id="kate/steady", goal="go on")
            await eventually(lambda: len(seen) == 2, within=30)
            await stage.server.restart(kill=True)
            await flow.advance({"n": 1})
            await flow.finish()
            await eventually(lambda: len(seen) >= 4, within=60)
        assert seen == [1, 2, 3, 4]


async def test_an_event_of_a_flow_that_has_ended_since_is_settled_and_not_tried_for_ever(flows: FlowClient) -> None:
    agent = Agent(flows, name=flows.agent, retry_first=0.05)
    calls: list[str] = []

    @agent.on("started")
    async def handle(flow: Flow, event: Event) -> None:
        calls.append(flow.id)
        await flow.advance({"late": True})

    flow = await flows.start(controller_id="kate/x", goal="end before the handler comes")
    await flow.finish()
    async with running(agent):
        await eventually(lambda: calls == [flow.id], within=20)
        await eventually(lambda: settled(flows, flows.agent), within=20)
    assert calls == [flow.id]


TERMINATED = """
import asyncio, signal, sys
from pathlib import Path
from nats_taskflow import Agent, Event, Flow

url, marks, who = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
agent = Agent(url, agent=who, name=who)


@agent.on(controller="kate/steady")
async def handle(flow: Flow, event: Event) -> None:
    (marks / f"begun-{event.seq}").touch()
    while not (marks / "go-on").exists():
        await asyncio.sleep(0.01)
    (marks / f"done-{event.seq}").touch()


asyncio.run(agent.run(stop_on=[signal.SIGTERM]))
"""


@asynccontextmanager
async def terminated(world: World, flows: FlowClient, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program that has the first of three events in hand, and has heard its first SIGTERM: it asks for no more events."""
    (folder / "agent.py").write_text(TERMINATED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(folder / "agent.py"), world.url, str(folder), flows.agent, env=environment
    )
    try:
        await (await flows.start(controller_id="kate/steady", goal="be handled")).advance({"n": 1})
        await eventually((folder / "begun-1").exists, within=30)
        await eventually(lambda: asking(flows, flows.agent), within=30)
        process.send_signal(signal.SIGTERM)

        async def heard() -> bool:
            return not await asking(flows, flows.agent)

        await eventually(heard, within=30)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_lets_a_program_finish_what_it_has_in_hand_and_the_next_one_goes_on_at_once(
    world: World, flows: FlowClient, tmp_path: Path
) -> None:
    async with terminated(world, flows, tmp_path) as process:
        (tmp_path / "go-on").touch()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert (tmp_path / "done-1").exists()
    assert not (tmp_path / "begun-2").exists()
    handled: list[int] = []
    following = Agent(flows, name=flows.agent)

    @following.on(controller="kate/steady")
    async def handle(flow: Flow, event: Event) -> None:
        handled.append(event.seq)

    async with running(following):
        await eventually(lambda: handled == [2, 3], within=20)  # at once: the broker by itself takes 30 s


async def test_a_second_sigterm_does_not_wait_for_the_handler(world: World, flows: FlowClient, tmp_path: Path) -> None:
    async with terminated(world, flows, tmp_path) as process:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert not (tmp_path / "done-1").exists()


async def test_an_agent_says_what_it_lacks() -> None:
    with pytest.raises(InvalidRequest, match="loop's name"):
        Agent(name="no dots.", agent="kate")
    with pytest.raises(InvalidRequest, match="who the agent is"):
        Agent("nats://127.0.0.1:4222", name="loop")
