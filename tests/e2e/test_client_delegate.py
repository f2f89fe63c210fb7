"""`serve_delegate`: answers reach flows whatever is killed, repeats run once, errors are payloads, notices and deadlines count."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.client import (
    DelegateCall,
    DelegateError,
    Flow,
    FlowClient,
    FlowEnded,
    NotPermitted,
    serve_delegate,
    synadia_agent_protocol,
)
from nats_taskflow.client.nats import NatsTransport
from tests.e2e.stage import Agent, Stage, World
from tests.eventually import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
async def flows(world: World, agent: Agent) -> AsyncIterator[FlowClient]:
    """The agent, by the client."""
    async with FlowClient.connect(world.url, agent=agent.name) as made:
        yield made


async def add(asked: DelegateCall) -> Any:
    """Be a delegate."""
    if asked.payload["b"] is None:
        raise DelegateError(422, "b is missing")
    return {"sum": asked.payload["a"] + asked.payload["b"]}


async def delegating(flows: FlowClient, payload: Any = None, to: str = "svc.add", **more: Any) -> Flow:
    flow = await flows.start(controller_id="kate/test", goal="add")
    await flow.delegate(to, {"a": 1, "b": 2} if payload is None else payload, **{"timeout": "10m", **more})
    return flow


async def test_a_flow_is_answered_and_an_error_of_the_handler_is_an_error_payload(flows: FlowClient, world: World) -> None:
    async with serve_delegate("svc.add", add, on=world.url):
        assert (await (await delegating(flows)).resumed("20s")).payload == {"sum": 3}
        missing = await (await delegating(flows, {"a": 1, "b": None})).resumed("20s")
        assert missing.payload == {"error": {"code": "422", "message": "b is missing"}}
        defect = await (await delegating(flows, {"no": "numbers"})).resumed("20s")
        assert defect.payload == {"error": {"code": "500", "message": "the delegate failed: KeyError"}}
        shared = await (await delegating(flows, reply_topic="agent.delegate.reply")).resumed("20s")
        assert (shared.payload, shared.topic) == ({"sum": 3}, "agent.delegate.reply")


async def test_anybody_else_gets_an_ordinary_response(flows: FlowClient, agent: Agent) -> None:
    async with serve_delegate("svc.add", add, on=flows):
        answer = await agent.client.request("svc.add", b'{"a": 20, "b": 22}', timeout=10)
        assert json.loads(answer.data) == {"sum": 42}
        refused = await agent.client.request("svc.add", b'{"a": 20, "b": null}', timeout=10)
        assert (refused.headers or {})["Nats-Service-Error-Code"] == "422"
        assert (refused.headers or {})["Nats-Service-Error"] == "b is missing"


async def test_a_request_that_comes_twice_runs_once_and_both_get_the_same_answer(flows: FlowClient, agent: Agent) -> None:
    runs = 0
    go_on = asyncio.Event()

    async def slow(asked: DelegateCall) -> int:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return runs

    async def ask() -> bytes:
        return bytes((await agent.client.request("svc.slow", b"{}", timeout=20, headers={"Nats-Msg-Id": "same"})).data)

    async with serve_delegate("svc.slow", slow, on=flows):
        both = [asyncio.ensure_future(ask()) for _ in range(2)]
        await eventually(lambda: runs == 1, within=10)
        go_on.set()
        assert await asyncio.gather(*both) == [b"1", b"1"]
        assert await ask() == b"1"
        other = await agent.client.request("svc.slow", b"{}", timeout=20, headers={"Nats-Msg-Id": "other"})
        assert other.data == b"2"


async def test_only_so_many_answers_are_remembered(flows: FlowClient, agent: Agent) -> None:
    runs: list[str] = []

    async def note(asked: DelegateCall) -> str:
        runs.append(asked.id or "")
        return asked.id or ""

    async with serve_delegate("svc.note", note, on=flows, remember=2):
        for name in ("a", "b", "c", "a", "c"):
            await agent.client.request("svc.note", b"", timeout=20, headers={"Nats-Msg-Id": name})
    assert runs == ["a", "b", "c", "a"]


async def test_the_answer_is_stored_though_worker_and_broker_were_killed_while_the_handler_ran(stage: Stage) -> None:
    asked_for = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(asked: DelegateCall) -> str:
        asked_for.set()
        await go_on.wait()
        return "at last"

    async with (
        FlowClient.connect(stage.url, agent="kate", patience=60.0) as flows,
        serve_delegate("svc.slow", slow, on=stage.url),
    ):
        flow = await delegating(flows, to="svc.slow")
        await asyncio.wait_for(asked_for.wait(), 20)
        await stage.kill()
        await stage.server.restart(kill=True)
        go_on.set()
        await stage.start()
        assert (await flow.resumed("60s")).payload == "at last"
        assert [entry.kind.value async for entry in flow.history()].count("resumed") == 1


async def test_a_cancel_notice_ends_the_handler_and_nothing_is_answered(flows: FlowClient, agent: Agent) -> None:
    ends: list[str] = []
    begun = asyncio.Event()

    async def work(asked: DelegateCall) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append(asked.correlation_id or "")

    async with serve_delegate("svc.work", work, on=flows, cancel_on="svc.work.stop"):
        flow = await delegating(flows, to="svc.work", cancel_to="svc.work.stop")
        correlation = (flow.snapshot.wait or {})["correlation_id"]
        await asyncio.wait_for(begun.wait(), 20)
        await flow.cancel("Bob called")
        await eventually(lambda: ends == [correlation], within=20)
    assert flow.status == "cancelled"
    assert (await agent.kinds(flow.id))[-1] == "cancelled"


async def test_a_notice_with_somebody_elses_correlation_id_ends_nothing_of_theirs(flows: FlowClient, world: World) -> None:
    asked: list[DelegateCall] = []
    cancelled: list[str | None] = []
    go_on = asyncio.Event()

    async def work(request: DelegateCall) -> str:
        asked.append(request)
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            cancelled.append(request.agent)
            raise
        return "done"

    mallory = f"mallory-{flows.agent}"
    async with (
        serve_delegate("svc.work", work, on=world.url, cancel_on="svc.work.stop"),
        FlowClient.connect(world.url, agent=mallory) as others,
    ):
        hers = await delegating(flows, to="svc.work", cancel_to="svc.work.stop")
        known = (hers.snapshot.wait or {})["correlation_id"]
        theirs = await delegating(others, to="svc.work", cancel_to="svc.work.stop", correlation_id=known)
        await eventually(lambda: len(asked) == 2, within=20)
        await theirs.cancel()
        await eventually(lambda: cancelled == [mallory], within=20)
        go_on.set()
        assert (await hers.resumed("20s")).payload == "done"
    assert [(request.agent, request.correlation_id) for request in asked] == [(flows.agent, known), (mallory, known)]


async def test_an_answer_arrives_though_somebody_has_used_up_its_id(flows: FlowClient, world: World, agent: Agent) -> None:
    """Also where it is somebody who hears the requests."""
    go_on = asyncio.Event()
    names: list[str] = []

    async def late(asked: DelegateCall) -> str:
        names.append(asked.id or "")
        await go_on.wait()
        return "all the same"

    async with serve_delegate("svc.late", late, on=world.url):
        flow = await delegating(flows, to="svc.late")
        await eventually(lambda: names, within=20)
        hers = f"taskflow.cmd.mallory-{agent.name}.run"
        for name in (f"{names[0]}:reply", f"{flow.id}:{flow.revision}:request:reply"):
            assert not (await agent.publish(hers, b"{}", {"Nats-Msg-Id": name})).duplicate
        go_on.set()
        assert (await flow.resumed("20s")).payload == "all the same"


async def test_a_request_whose_notice_came_first_is_not_run(flows: FlowClient, agent: Agent) -> None:
    runs: list[Any] = []

    async def work(asked: DelegateCall) -> None:
        runs.append(asked.payload)

    headers = {"Taskflow-Flow-Id": "f", "Correlation-Id": "c", "Nats-Msg-Id": "f:1:request"}
    async with serve_delegate("svc.work", work, on=flows, cancel_on="svc.work.stop"):
        await agent.client.publish("svc.work.stop", b'{"flow_id": "f", "correlation_id": "c", "reason": null}')
        await agent.client.flush()
        await agent.client.publish("svc.work", b"1", headers=headers)
        await agent.client.publish("svc.work", b"2")
        await eventually(lambda: runs == [2], within=10)


async def test_a_deadline_ends_the_handler(flows: FlowClient) -> None:
    ended: list[str] = []

    async def forever(asked: DelegateCall) -> None:
        assert asked.deadline is not None
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asked.flow_id or "")

    async with serve_delegate("svc.forever", forever, on=flows):
        flow = await delegating(flows, to="svc.forever", timeout="1s", on_timeout="fail")
        await eventually(lambda: ended == [flow.id], within=20)
        with pytest.raises(FlowEnded, match="wait timed out"):
            await flow.resumed("20s")


async def test_what_is_in_hand_is_finished_when_the_delegate_stops(flows: FlowClient, world: World) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(asked: DelegateCall) -> str:
        begun.set()
        await go_on.wait()
        return "done before the end"

    serving = serve_delegate("svc.slow", slow, on=world.url)
    async with serving:
        flow = await delegating(flows, to="svc.slow")
        await asyncio.wait_for(begun.wait(), 20)
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert (await flow.resumed("20s")).payload == "done before the end"


async def test_an_agent_of_the_synadia_protocol_is_a_delegate(flows: FlowClient, agent: Agent) -> None:
    questions: list[Any] = []

    async def researcher(request: Msg) -> None:
        questions.append(json.loads(request.data))

        async def say(kind: str, data: Any) -> None:
            await agent.client.publish(request.reply, json.dumps({"type": kind, "data": data}).encode())

        await say("status", "ack")
        if "broken" in questions[-1]["prompt"]:
            headers = {"Nats-Service-Error-Code": "503", "Nats-Service-Error": "out of tokens"}
            await agent.client.publish(request.reply, b"", headers=headers)
            return
        await say("response", "six times seven ")
        inbox = agent.client.new_inbox()
        back = await agent.client.subscribe(inbox)
        await say("query", {"id": "1", "reply_subject": inbox, "prompt": "in decimal?"})
        more = json.loads((await back.next_msg(timeout=10)).data)["prompt"]
        await say("response", {"text": f"is 42 ({more})"})
        await agent.client.publish(request.reply, b"")

    async def answering(question: str) -> str:
        return f"{question} yes"

    subject = "agents.prompt.researcher.acme.main"
    await agent.client.subscribe(subject, cb=researcher)
    await agent.client.flush()
    ask = synadia_agent_protocol.handler(flows.transport, subject, answering=answering)
    async with serve_delegate("svc.research", ask, on=flows):
        answer = await (await delegating(flows, {"prompt": "what is 6 × 7?"}, to="svc.research")).resumed("20s")
        assert answer.payload == {"text": "six times seven is 42 (in decimal? yes)", "chunks": 2}
        broken = await (await delegating(flows, "be broken", to="svc.research")).resumed("20s")
        assert broken.payload == {"error": {"code": "503", "message": "out of tokens"}}
        nobody = synadia_agent_protocol.handler(flows.transport, "agents.prompt.nobody.acme.main")
        async with serve_delegate("svc.nobody", nobody, on=flows):
            silent = await (await delegating(flows, "hello?", to="svc.nobody")).resumed("20s")
            assert silent.payload["error"]["message"] == "nobody listens on agents.prompt.nobody.acme.main"
    assert questions[0] == {"prompt": "what is 6 × 7?"}


async def test_another_instance_answers_a_repeat_from_the_bucket_also_after_the_broker_was_killed(stage: Stage) -> None:
    runs: list[str] = []

    async def pay(asked: DelegateCall) -> dict[str, int]:
        runs.append(asked.id or "")
        return {"paid": len(runs)}

    async def ask() -> bytes:
        async with FlowClient.connect(stage.url, agent="kate") as flows:
            return (await flows.transport.request("svc.pay", b"{}", {"Nats-Msg-Id": "invoice-7"}, timeout=20)).body

    async with serve_delegate("svc.pay", pay, on=stage.url, memory="billing"):
        assert await ask() == b'{"paid":1}'
    await stage.server.restart(kill=True)
    async with serve_delegate("svc.pay", pay, on=stage.url, memory="billing"):
        assert await ask() == b'{"paid":1}'
    assert runs == ["invoice-7"]


async def test_the_bucket_is_one_as_any_other_and_one_that_is_there_stays_as_it_is(flows: FlowClient, agent: Agent, world: World) -> None:
    jetstream, mine, new = agent.client.jetstream(), f"{agent.name}-mine", f"{agent.name}-new"
    made = await jetstream.create_key_value(bucket=mine, ttl=60)
    async with (
        serve_delegate("svc.add", add, on=world.url, memory=mine),
        serve_delegate("svc.other", add, on=world.url, memory=new),
    ):
        assert (await (await delegating(flows)).resumed("20s")).payload == {"sum": 3}
    (key,) = await made.keys()
    assert json.loads((await made.get(key)).value or b"")["body"] == "eyJzdW0iOjN9"
    ages = [(await jetstream.stream_info(name)).config.max_age for name in (f"KV_{mine}", f"KV_{new}")]
    assert ages == [60, 7 * 86_400]
    await made.delete(key)
    assert await flows.transport.recall(mine, key, timeout=5) is None


async def written(url: str, frame: bytes) -> None:
    """Write to the server what no client would."""
    reader, writer = await asyncio.open_connection(*url.removeprefix("nats://").split(":"))
    writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n' + frame + b"PING\r\n")
    while (line := await asyncio.wait_for(reader.readline(), 10)) != b"PONG\r\n":
        assert line.startswith(b"INFO"), line
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "frame",
    [b"PUB svc.\xff\xfe 1\r\n1\r\n", b"HPUB svc.add 1 2\r\n\xff1\r\n", b"HPUB svc.add 19 20\r\nNATS/1.0 409 \xff\xff\r\n\r\n1\r\n"],
    ids=["subject", "header", "status"],
)
async def test_bytes_that_are_no_text_do_not_end_a_delegates_hearing(flows: FlowClient, world: World, frame: bytes) -> None:
    async with serve_delegate("svc.*", add, on=world.url):
        await written(world.url, frame)
        assert (await (await delegating(flows)).resumed("20s")).payload == {"sum": 3}


MAY_LITTLE = """
authorization {
  users = [
    {user: billing, password: x, permissions: {publish: ["_INBOX.>"], subscribe: ["svc.billing", "_INBOX.>"]}}
  ]
}
"""


async def test_a_delegate_says_which_permission_it_lacks_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedServer(tmp_path / "nats", extra_config=MAY_LITTLE)
    await server.start()
    try:
        transport = await NatsTransport.connect(server.url, user="billing", password="x")
        with pytest.raises(NotPermitted, match=r"svc\.other"):
            await serve_delegate("svc.other", add, on=transport).__aenter__()
        # A subscription that was left would be asked for again with each new connection.
        assert [subscription.subject for subscription in transport._client._subs.values() if "svc" in subscription.subject] == []
        async with serve_delegate("svc.billing", add, on=transport):  # the connection is as good as before
            await transport.tell("_INBOX.x", b"")
            await transport._client.flush()
        with pytest.raises(NotPermitted, match=r"may not use \$JS\.API\.STREAM\.MSG\.GET\.KV_billing"):
            await serve_delegate("svc.billing", add, on=transport, memory="billing").__aenter__()
        await transport.close()
        with pytest.raises(NotPermitted):
            await serve_delegate("svc.other", add, on=server.url, user="billing", password="x").__aenter__()
        gc.collect()
        assert "never retrieved" not in caplog.text
    finally:
        await server.stop()
