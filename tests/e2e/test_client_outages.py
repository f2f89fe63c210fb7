"""`FlowClient` while workers and brokers are killed: no command is lost or done twice, no event has a gap or comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec
import pytest

from nats_taskflow.client import Event, FlowClient, FlowRefused, InvalidRequest, NoOutcome, TooDeep, TooLarge, Unavailable
from nats_taskflow.client.commands import Door
from nats_taskflow.client.live_events import live_events
from tests.e2e.stage import Agent, Stage
from tests.eventually import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
async def flows(stage: Stage) -> AsyncIterator[FlowClient]:
    """The agent `kate`, by the client."""
    async with FlowClient.connect(stage.url, agent="kate") as made:
        yield made


async def started(flows: FlowClient, **more: Any) -> Any:
    return await flows.start(controller_id="kate/test", goal="test", **more)


async def test_what_cannot_be_right_is_refused_before_it_is_sent(flows: FlowClient, stage: Stage) -> None:
    flow = await started(flows)
    await stage.kill()
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    early: list[tuple[type[FlowRefused], Any]] = [
        (TooLarge, lambda: flow.advance({"a": "x" * 300_000})),
        (TooDeep, lambda: flow.advance({"a": deep})),
        (InvalidRequest, lambda: flow.advance({"a": 1}, current_step="")),
        (InvalidRequest, lambda: flow.advance({"a": 1}, command_id="no blanks please")),
        (InvalidRequest, lambda: flow.wait_timer(datetime.now())),  # noqa: DTZ005 - that is the point
        (InvalidRequest, lambda: flow.wait_manual(timeout="soon")),
        (InvalidRequest, lambda: flow.observe("r", "t", "resting")),
    ]
    for kind, call in early:
        with pytest.raises(kind):
            await call()
    with pytest.raises(InvalidRequest, match="agent's name"):
        async with FlowClient.connect(stage.url, agent="no.dots"):
            pass


@pytest.mark.parametrize("door", ["cmd", "api"])
async def test_a_command_that_was_sent_while_the_worker_is_dead_is_applied_once_when_it_is_back(
    stage: Stage, flows: FlowClient, kate: Agent, door: Door
) -> None:
    flow = await started(flows)
    await stage.kill()
    sending = asyncio.ensure_future(flow.advance({"n": 1}, door=door))
    if door == "cmd":
        await eventually(lambda: inbound_has(kate, flow.id), within=10)
    await stage.start()
    assert (await sending).state == {"n": 1}
    assert (await kate.kinds(flow.id)).count("state_updated") == 1


async def inbound_has(kate: Agent, flow_id: str) -> bool:
    """Tell whether the last message of the inbound stream is about the flow: the command was accepted."""
    state = (await kate.js.stream_info("TASKFLOW_IN")).state
    return state.last_seq > 0 and flow_id.encode() in ((await kate.js.get_msg("TASKFLOW_IN", state.last_seq)).data or b"")


async def test_no_outcome_in_time_says_whether_the_command_was_accepted_and_its_id_finds_it_later(stage: Stage, kate: Agent) -> None:
    async with FlowClient.connect(stage.url, agent="kate", patience=1.0) as flows:
        flow = await started(flows)
        await stage.kill()
        with pytest.raises(NoOutcome) as doubt:
            await flow.advance({"n": 1})
        assert doubt.value.accepted
        with pytest.raises(NoOutcome) as unknown:
            await flow.advance({"m": 1}, door="api")
        assert not unknown.value.accepted
        with pytest.raises(Unavailable):
            await flow.refresh()
        await stage.start()
        await kate.outcome(doubt.value.command_id)
        await flow.advance({"n": 1}, command_id=doubt.value.command_id)
        await flow.advance({"m": 1}, command_id=unknown.value.command_id, door="api")
        assert flow.state == {"n": 1, "m": 1}
        assert (await kate.kinds(flow.id)).count("state_updated") == 2


async def test_commands_of_many_flows_survive_a_killed_broker_and_a_killed_worker_each_once(stage: Stage, kate: Agent) -> None:
    async with FlowClient.connect(stage.url, agent="kate", patience=60.0) as flows:
        made = await asyncio.gather(*(started(flows) for _ in range(8)))
        work = [asyncio.ensure_future(flow.advance({"n": number})) for flow in made for number in range(5)]
        await stage.server.restart(kill=True)
        await stage.kill()
        await stage.start()
        await asyncio.gather(*work)
        for flow in made:
            assert [entry.kind async for entry in flow.history()].count("state_updated") == 5


async def test_events_have_no_gap_and_no_repeat_when_the_broker_is_killed_under_them(stage: Stage) -> None:
    async with FlowClient.connect(stage.url, agent="kate", patience=60.0) as flows:
        flow = await started(flows)
        seen: list[int] = []

        async def watch() -> None:
            async for event in flow.events():
                seen.append(event.seq)  # noqa: PERF401 - others look into it meanwhile

        watching = asyncio.ensure_future(watch())
        for number in range(3):
            await flow.advance({"n": number})
            await eventually(lambda: len(seen) >= 3 + number, within=20)  # noqa: B023 - called at once
            await stage.server.restart(kill=True)
            await flow.advance({"again": number})
        await flow.finish()
        await asyncio.wait_for(watching, 60)
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) == 9


async def test_without_rights_on_the_stream_a_flows_events_are_heard_live_and_read_from_the_journal(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nats_taskflow.client.live_events._SILENCE", 0.5)
    async with FlowClient.connect(stage.url, agent="kate", patience=60.0) as flows:
        flow = await started(flows)
        seen: list[int] = []

        async def watch() -> list[Event]:
            events = []
            async for event in live_events(flows, flow.snapshot, after=1):
                events.append(event)
                seen.append(event.seq)
                if event.terminal:
                    break
            return events

        watching = asyncio.ensure_future(watch())
        await eventually(lambda: seen == [2], within=20)
        for number in range(3):
            await flow.advance({"n": number}, current_step=f"step-{number}")
            await stage.server.restart(kill=True)  # what is published before the connection is back is not heard
        await flow.observe("run-1", "look", "running")
        await flow.finish()
        found = await asyncio.wait_for(watching, 60)
        published = [event async for event in flow.events(after=1)]
        assert seen == list(range(2, 8))
        same = [msgspec.structs.replace(event, stream_seq=0, correlation_id=None) for event in published]
        assert [msgspec.structs.replace(event, correlation_id=None, stream_seq=0) for event in found] == same


async def test_the_transport_gives_each_message_of_a_stream_once_when_the_broker_is_killed(stage: Stage) -> None:
    async with FlowClient.connect(stage.url, agent="kate", patience=60.0) as flows:
        flow = await started(flows)
        seen: list[int] = []

        async def watch() -> None:
            async with aclosing(flows.transport.follow("taskflow.evt.kate.*.*", stream="TASKFLOW_EVT", after=1)) as messages:
                async for message in messages:
                    seen.append(message.seq)  # noqa: PERF401 - others look into it meanwhile

        watching = asyncio.ensure_future(watch())
        await eventually(lambda: seen == [2], within=20)
        await stage.server.restart(kill=True)
        await flow.advance({"n": 1})
        await eventually(lambda: len(seen) >= 2, within=30)
        watching.cancel()
        assert seen == [2, 3]
