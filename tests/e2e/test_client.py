"""`FlowClient` against a real worker: every verb, both doors, answers that are lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nats_taskflow.client import (
    AlreadyTerminal,
    Conflict,
    FlowClient,
    FlowEnded,
    FlowRefused,
    Forbidden,
    HorizonExceeded,
    IdMismatch,
    IllegalTransition,
    InvalidRequest,
    Lost,
    NoOutcomeYet,
    NotFound,
    RevisionMismatch,
    TimerInPast,
    TopicNotBound,
    Unavailable,
    WaitConflict,
    all_of,
    any_of,
    at_least,
    ended,
    manual,
    reply,
    timer,
)
from nats_taskflow.client.commands import Door
from nats_taskflow.client.live_events import live_events
from nats_taskflow.client.transport import TransportMessage
from tests.e2e.stage import TOPIC, Agent, World

pytestmark = pytest.mark.e2e


@pytest.fixture
async def flows(world: World, agent: Agent) -> AsyncIterator[FlowClient]:
    """The agent, by the client."""
    async with FlowClient.connect(world.url, agent=agent.name) as made:
        yield made


async def started(flows: FlowClient, **more: Any) -> Any:
    return await flows.start(controller_id="kate/test", goal="test", **more)


@pytest.mark.parametrize("door", ["cmd", "api"])
async def test_every_verb_works_through_both_sender(flows: FlowClient, agent: Agent, door: Door) -> None:
    flow = await started(flows, state={"a": 1}, current_step="first", hold=True, door=door)
    assert (flow.status, flow.state, flow.current_step, flow.revision) == ("created", {"a": 1}, "first", 0)
    assert (await flow.run(door=door)).status == "running"
    assert (await flow.advance({"b": 2}, current_step="second", door=door)).state == {"a": 1, "b": 2}
    assert flow.current_step == "second"
    step = await flow.observe("run-1", "look around", "running", door=door)
    assert (step.run_id, step.status) == ("run-1", "running")
    await flow.wait_manual("Ann: go on?", door=door)
    assert flow.status == "waiting"
    await flow.resume({"approved": True}, reason="fine", door=door)
    assert flow.state["approved"] is True
    correlation = await flow.wait_reply(TOPIC, timeout="1h", door=door)
    assert len(correlation) >= 22
    await flows.reply(TOPIC, correlation, {"answer": 42})
    resumed = await flow.resumed(timeout="20s")
    assert (resumed.cause, resumed.payload, resumed.correlation_id) == ("event", {"answer": 42}, correlation)
    await flow.delegate("svc.nobody", {"x": 1}, timeout="10m", cancel_to="svc.stop", door=door)
    assert flow.snapshot.wait is not None
    assert flow.snapshot.wait["to"] == "svc.nobody"
    await flow.resume(door=door)
    await flow.finish({"done": True}, door=door)
    assert flow.status == "finished"
    failed = await started(flows, door=door)
    assert (await failed.fail("no paper", door=door)).state["failure"]["reason"] == "no paper"
    parent = await started(flows, door=door)
    child = await started(flows, parent=parent, door=door)
    await parent.cancel("no longer needed", door=door)
    assert (await child.refresh()).status == "cancelled"
    assert [entry.kind for entry in [one async for one in flow.history()]] == await agent.kinds(flow.id)


async def test_queries_give_pages_as_one_iterator(flows: FlowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nats_taskflow.client.session._PAGE", 2)
    made = [await started(flows) for _ in range(5)]
    await made[0].wait_manual("Ann?")
    for number in range(5):
        await made[0].observe(f"run-{number}", "look", "running")
    assert [flow.id async for flow in flows.list()] == [flow.id for flow in reversed(made)]
    assert [flow.id async for flow in flows.list(status="waiting")] == [made[0].id]
    assert [flow.id async for flow in flows.list(status="waiting", controller="*", since="1h")] == [made[0].id]
    assert [flow.id async for flow in flows.list(goal="no flow has this in its goal")] == []
    assert [step.run_id async for step in made[0].steps()] == [f"run-{number}" for number in range(5)]
    assert [entry.seq async for entry in made[0].history()] == list(range(1, 9))
    assert [wait.flow_id async for wait in flows.waits()] == [made[0].id]
    shown = await made[0].waits()
    assert shown is not None
    assert shown.wait == {"kind": "manual", "prompt": "Ann?"}
    assert await made[1].waits() is None


async def test_what_a_flow_can_wait_for_is_spelled_by_functions(flows: FlowClient) -> None:
    flow, other = await started(flows), await started(flows)
    await flow.wait_timer("1s")
    resumed = await flow.resumed(timeout="20s")
    assert (resumed.cause, resumed.payload, resumed.timed_out) == ("timer", None, False)
    await flow.wait_reply(TOPIC, f"{flows.agent}-never", timeout="1s")
    assert (await flow.resumed(timeout="20s")).timed_out
    await flow.wait(ended(other.id))
    await other.finish({"spam": 2})
    assert (await flow.resumed(timeout="20s")).payload["status"] == "finished"
    unlikely = all_of(reply(TOPIC, f"{flows.agent}-unlikely"), any_of(timer("1h"), manual(name="carol")))
    await flow.wait(at_least(2, manual(name="ann"), manual(name="bob"), unlikely))
    await flow.resume({"yes": True}, leaf="ann")
    assert flow.status == "waiting"
    await flow.resume({"yes": False}, leaf="bob")
    assert (await flow.resumed(timeout="20s")).payload == {"0": {"yes": True}, "1": {"yes": False}}
    await flows.reply(TOPIC, f"{flows.agent}-early", "first come")
    await flow.wait_reply(TOPIC, f"{flows.agent}-early")
    assert (await flow.resumed(timeout="20s")).payload == "first come"


async def test_waiting_for_a_resume_ends_with_the_flow_with_its_time_or_at_once_where_nothing_waits(flows: FlowClient) -> None:
    flow = await started(flows)
    with pytest.raises(ValueError, match="not waiting"):
        await flow.resumed()
    await flow.wait_reply(TOPIC, f"{flows.agent}-never", timeout="1s", on_timeout="fail")
    with pytest.raises(FlowEnded, match="wait timed out") as ended_:
        await flow.resumed(timeout="20s")
    assert ended_.value.status == "failed"
    patient = await started(flows)
    await patient.wait_manual()
    with pytest.raises(TimeoutError):
        await patient.resumed(timeout="100ms")
    again = await flows.get(patient.id)
    waiting = asyncio.ensure_future(again.resumed(timeout="20s"))
    await patient.resume({"by": "ann"}, reason="go")
    assert (await waiting).payload == {"by": "ann"}


@pytest.mark.parametrize("door", ["cmd", "api"])
async def test_each_refusal_is_an_exception_of_its_own(flows: FlowClient, door: Door) -> None:
    flow, over = await started(flows), await started(flows)
    await over.finish()
    elsewhere = await flows.in_session("other").start(controller_id="kate/test", goal="test")
    winding = await started(flows)
    await winding.cancel(mode="request")
    taken = await started(flows)
    await taken.wait_reply(TOPIC, flows.agent)
    refusals: list[tuple[type[FlowRefused], Any]] = [
        (AlreadyTerminal, lambda: over.advance({"a": 1}, door=door)),
        (IllegalTransition, lambda: taken.finish(door=door)),
        (Forbidden, lambda: flows.send("advance", {"flow_id": elsewhere.id}, door=door)),
        (NotFound, lambda: flows.send("finish", {"flow_id": "01900000-0000-7000-8000-000000000000"}, door=door)),
        (TopicNotBound, lambda: flow.wait_reply("nobody.covers.this", door=door)),
        (TimerInPast, lambda: flow.wait_timer(datetime.now(UTC) - timedelta(minutes=1), door=door)),
        (HorizonExceeded, lambda: flow.wait_timer("900d", door=door)),
        (WaitConflict, lambda: flow.wait_reply(TOPIC, flows.agent, door=door)),
        (RevisionMismatch, lambda: flows.send("advance", {"flow_id": flow.id, "expected_revision": 77}, door=door)),
        (InvalidRequest, lambda: flow.wait({"kind": "moon"}, door=door)),
        (InvalidRequest, lambda: flow.delegate("taskflow.cmd.ann.start", door=door)),
    ]
    for kind, call in refusals:
        with pytest.raises(kind) as refused:
            await call()
        assert type(refused.value) is kind, refused.value
        assert refused.value.code == kind.code
        assert refused.value.message
    assert (await flow.refresh()).revision == 1


async def test_a_revision_can_be_insisted_on(flows: FlowClient) -> None:
    flow = await started(flows)
    other = await flows.get(flow.id)
    await other.advance({"a": 1})
    with pytest.raises(RevisionMismatch) as refused:
        await flow.advance({"b": 2}, if_unchanged=True)
    assert refused.value.details == {"expected": 1, "actual": 2}
    await flow.refresh()
    await flow.advance({"b": 2}, if_unchanged=True)
    assert flow.state == {"a": 1, "b": 2}


async def test_the_same_id_again_gives_the_same_outcome_and_another_body_under_it_is_a_conflict(flows: FlowClient, agent: Agent) -> None:
    flow, mine = await started(flows), f"{flows.agent}-mine"
    first = await flow.advance({"n": 1}, command_id=mine)
    doors: tuple[Door, ...] = ("cmd", "api")
    for door in doors:
        assert await flow.advance({"n": 1}, command_id=mine, door=door) == first
        with pytest.raises(Conflict):
            await flow.advance({"n": 2}, command_id=mine, door=door)
    assert (await flows.outcome(mine)).flow == first
    with pytest.raises(NoOutcomeYet) as nothing:
        await flows.outcome("never-sent")
    assert nothing.value.details == {"command_id": "never-sent"}
    with pytest.raises(IllegalTransition):
        await flow.resume(command_id=f"{mine}-refused")
    with pytest.raises(IllegalTransition):
        await flows.outcome(f"{mine}-refused")
    assert (await agent.kinds(flow.id)).count("state_updated") == 1
    one = await started(flows, idempotency_key="k-1")
    assert (await started(flows, idempotency_key="k-1")).id == one.id


async def test_an_id_that_differs_from_the_headers_is_a_mismatch(flows: FlowClient) -> None:
    flow = await started(flows)
    body = json.dumps({"flow_id": flow.id, "command_id": "one"}).encode()
    answer = await flows.transport.request(f"taskflow.api.{flows.agent}.advance", body, {"Nats-Msg-Id": "two"}, timeout=10)
    from nats_taskflow.client.commands import read_outcome

    with pytest.raises(IdMismatch):
        read_outcome(answer.body)


async def test_a_lost_answer_is_asked_for_by_the_commands_id(flows: FlowClient, agent: Agent) -> None:
    flow = await started(flows)
    await flows._sender.close()  # what the worker sends to the inbox reaches nobody
    await flow.advance({"n": 1})
    assert flow.state == {"n": 1}
    assert (await agent.kinds(flow.id)).count("state_updated") == 1


async def test_events_of_three_flows_come_interleaved_each_in_order_from_history_and_live(flows: FlowClient, agent: Agent) -> None:
    made = [await started(flows) for _ in range(3)]
    for number in range(3):
        for flow in made:
            await flow.advance({"n": number})
    seen: dict[str, list[int]] = {flow.id: [] for flow in made}
    async with aclosing(flows.events(controller="kate/*")) as events:
        async for event in events:
            seen[event.flow_id].append(event.seq)
            if sum(map(len, seen.values())) == 15:
                for flow in made:
                    await flow.finish({"ok": True})
            if [len(one) for one in seen.values()] == [6, 6, 6]:
                break
    assert all(seqs == [1, 2, 3, 4, 5, 6] for seqs in seen.values())
    only = [event.kind async for event in made[0].events()]
    assert only == ["created", "started", "state_updated", "state_updated", "state_updated", "finished"]
    assert [event.seq async for event in made[0].events(after=4)] == [5, 6]
    async with aclosing(flows.events(kinds={"finished"}, controller="kate/t*")) as finished:
        assert {(await anext(finished)).flow_id for _ in range(3)} == {flow.id for flow in made}


async def test_an_event_that_was_not_heard_is_read_from_the_journal_before_the_next_one_is_given(
    flows: FlowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = await started(flows)
    serve = flows.transport.serve

    async def hard_of_hearing(subject: str, handler: Any, *, queue: str = "") -> Any:
        async def sometimes(message: TransportMessage) -> None:
            if not message.subject.endswith("state_updated"):
                await handler(message)

        return await serve(subject, sometimes, queue=queue)

    monkeypatch.setattr(flows.transport, "serve", hard_of_hearing)
    seen: list[str] = []
    async with aclosing(live_events(flows, flow.snapshot, after=0)) as events:
        async for event in events:
            seen.append(event.id)
            if len(seen) == 2:
                await flow.advance({"n": 1})
                await flow.advance({"n": 2})
                await flow.finish()
            if event.terminal:
                break
    assert seen == [f"{flow.id}:{seq}" for seq in range(1, 6)]


async def test_what_was_in_hand_of_a_consumer_comes_first_and_in_order_to_the_next_one(flows: FlowClient) -> None:
    flow = await started(flows)
    for number in range(6):
        await flow.advance({"n": number})

    def consuming() -> Any:
        subject, stream = f"taskflow.evt.{flows.agent}.*.*", "TASKFLOW_EVT"
        return aclosing(flows.transport.consume(subject, stream=stream, durable=flows.agent, ack_wait=30.0, at_most=4))

    async with consuming() as first:
        taken = [await anext(first) for _ in range(4)]
        await taken[0].ack()
        await taken[2].ack()
    async with consuming() as second:
        again: list[int] = []
        while not again or again[-1] < 8:
            delivery = await asyncio.wait_for(anext(second), 20)
            again.append(int(delivery.message.headers["Nats-Msg-Id"].rpartition(":")[2]))
            await delivery.ack()
    assert again == sorted(again), "an event overtook one that was in hand"
    assert {2, 4, 5, 6, 7, 8} <= set(again)


async def test_a_reply_finds_its_flow_on_a_configured_and_on_the_built_in_topic_and_a_repeat_counts_once(flows: FlowClient) -> None:
    flow = await started(flows)
    for topic in (TOPIC, f"taskflow.reply.{flows.agent}"):
        correlation = await flow.wait_reply(topic)
        first = await flows.reply(topic, correlation, {"n": 1}, event_id=f"reply-{correlation}")
        again = await flows.reply(topic, correlation, {"n": 1}, event_id=f"reply-{correlation}")
        assert (first.duplicate, again.duplicate) == (False, True)
        assert (await flow.resumed(timeout="20s")).payload == {"n": 1}
    flows._sender.patience = 0.5
    with pytest.raises(Unavailable, match="not stored"):
        await flows.reply("no.stream.takes.this", "c", 1)


@pytest.mark.parametrize("within_a_handler", [False, True])
async def test_a_reply_whose_id_somebody_has_used_up_arrives_all_the_same(
    flows: FlowClient, agent: Agent, monkeypatch: pytest.MonkeyPatch, within_a_handler: bool
) -> None:
    """SEMANTICS R5: ids that are told or made of events can be guessed, and the broker drops what comes under one that it has seen."""
    flow = await started(flows)
    topic = f"taskflow.reply.{flows.agent}"
    correlation = await flow.wait_reply(topic)
    name = f"guessed-{correlation}"
    await agent.publish(f"taskflow.cmd.mallory-{agent.name}.run", b"{}", {"Nats-Msg-Id": name})
    if within_a_handler:
        monkeypatch.setattr("nats_taskflow.client.session.new_id", lambda _verb: (name, True))
    given = None if within_a_handler else name
    stored = await flows.reply(topic, correlation, {"n": 1}, event_id=given)
    assert stored.duplicate
    assert (await flow.resumed(timeout="20s")).payload == {"n": 1}
    assert (await agent.flow(flow.id))["state"]["resume_meta"]["event_id"] == name


async def test_a_client_takes_a_connection_that_exists_and_leaves_it_open(world: World, agent: Agent) -> None:
    async with FlowClient.connect(agent.client, agent=agent.name) as flows:
        assert (await started(flows)).status == "running"
        with pytest.raises(TypeError):
            async with FlowClient.connect(agent.client, agent=agent.name, user="kate"):
                pass
    assert agent.client.is_connected


async def test_nobody_there_is_said_soon_and_in_one_sentence() -> None:
    with pytest.raises(Lost, match="cannot be reached within"):
        async with FlowClient.connect("nats://127.0.0.1:1", agent="kate", connect_timeout=0.3):
            pass


async def test_a_context_of_the_nats_cli_says_where_to_connect(
    world: World, agent: Agent, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "config" / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "prod.json").write_text(json.dumps({"url": world.url}))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    async with FlowClient.connect("prod", agent=agent.name) as flows:
        assert (await started(flows)).status == "running"
    monkeypatch.setenv("NATS_CONTEXT", "prod")
    async with FlowClient.connect(agent=agent.name) as flows:
        assert (await started(flows)).status == "running"
    with pytest.raises(Lost, match="no NATS context 'nowhere'"):
        async with FlowClient.connect("nowhere", agent=agent.name):
            pass
