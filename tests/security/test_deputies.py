"""Whoever asks chooses where the answer goes. Worker and server may publish where agents may not: they must not do it for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from tests.e2e.stage import Agent, Sent, encoded
from tests.eventually import eventually
from tests.security.guarded import Guarded, Refused, flushed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("deputies")]

THREE = ("TASKFLOW_EVT", "TASKFLOW_DLQ", "TASKFLOW_IN")
GUESSED = "a-correlation-id-that-was-guessed"
FORGED = (
    *("taskflow.evt.ann.{flow}.finished", "taskflow.dlq.forged", "agent.delegate.reply", f"taskflow.reply.ann.{GUESSED}"),
    *("taskflow.cmd.ann.start", "taskflow.resume"),  # where the worker may publish, to replay dead letters
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """Server, worker and everybody else under the templates."""
    async with Guarded(tmp_path_factory.mktemp("deputies")) as made:
        await made.make_reader()
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kate(stage: Guarded) -> Agent:
    """The one who tries."""
    return await stage.agent("kate")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(stage: Guarded) -> Agent:
    """The one it is tried on."""
    return await stage.agent("ann")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(stage: Guarded) -> Agent:
    """The one who looks."""
    return await stage.agent("operator")


@pytest.mark.parametrize("where", [*FORGED, "$JS.API.STREAM.PURGE.TASKFLOW_EVT", "$SYS.REQ.SERVER.PING"])
async def test_the_worker_answers_no_request_on_a_subject_that_is_not_the_askers(
    stage: Guarded, kate: Agent, ann: Agent, operator: Agent, where: str
) -> None:
    reply = where.format(flow=await ann.start())
    before = len(withheld(stage))
    for verb in ("list_mine", "no_such_verb"):
        await kate.client.publish(f"taskflow.api.kate.{verb}", b"{}", reply=reply)
    # Events leave on the worker's connection, in order: once this one is stored, so is what was sent before it.
    later = await kate.start()
    await eventually(lambda: started(stage, operator, later), within=20.0)
    answers = [sent.subject for sent in await everything(stage, operator) if sent.body.startswith(b'{"ok"')]
    assert answers == []
    assert len(withheld(stage)) == before + 2


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.TASKFLOW_IN.worker.1.1.1.1.0",
        "$JS.ACK.TASKFLOW_IN.replies.1.1.1.1.0",
        "$JS.ACK._.hash.TASKFLOW_IN.worker.1.1.1.1.0.r",
        "_R_.abcdef.ghijkl",
    ],
)
async def test_the_server_lets_nobody_make_its_answers_an_acknowledgement(stage: Guarded, reply: str) -> None:
    # A pull that finds nothing is answered with an empty body, and an empty body on an ack subject is an ack.
    refused = Refused()
    trying = {"reader": await stage.connect("reader", refused=refused), "kate": await stage.connect("kate", refused=refused)}
    for who, subject in (
        ("reader", "$JS.API.CONSUMER.MSG.NEXT.TASKFLOW_EVT.reader"),
        ("kate", "taskflow.cmd.kate.run"),
        ("kate", "taskflow.api.kate.status"),
    ):
        await trying[who].publish(subject, b'{"batch": 1, "no_wait": true}', reply=reply)
        await flushed(trying[who])
        assert len(refused.taken()) == 1, subject


async def test_an_acknowledgement_that_is_sent_to_somebody_elses_reply_topic_resumes_nobody(
    stage: Guarded, kate: Agent, ann: Agent, operator: Agent
) -> None:
    # Whoever publishes into a stream names where the PubAck goes, and the server has every right. Even with a guessed correlation id …
    flow_id = await ann.parked(GUESSED, topic="taskflow.reply.ann")
    where = f"taskflow.reply.ann.{GUESSED}"
    await kate.client.publish("taskflow.cmd.kate.run", b"{}", reply=where, headers={"Nats-Msg-Id": "deputy-1"})
    await eventually(lambda: arrived(stage, operator, where), within=20.0)
    await ann.cmd("start", {"controller_id": "ann/after", "goal": "after"}, "after-the-ack")
    assert (await ann.outcome("after-the-ack"))["ok"]  # decided in the order of the stream, so after the PubAck
    assert await ann.kinds(flow_id) == ["created", "started", "waiting"]


async def test_an_acknowledgement_is_all_that_can_be_put_among_somebody_elses_events(
    stage: Guarded, kate: Agent, ann: Agent, operator: Agent
) -> None:
    # … and among events it is no event: a reader that checks `specversion` passes it by. `accounts.conf` leaves not even that.
    where = f"taskflow.evt.ann.{await ann.start()}.finished"
    await kate.client.publish("taskflow.cmd.kate.run", b'{"text": "of her own"}', reply=where, headers={"Nats-Msg-Id": "deputy-2"})
    await eventually(lambda: arrived(stage, operator, where), within=20.0)
    forged = [sent for sent in await everything(stage, operator) if sent.subject == where]
    assert [sorted(sent.json) for sent in forged] == [["seq", "stream"]]
    assert forged[0].headers == {}


ERASING = [f"STREAM.{verb}.{name}" for verb in ("PURGE", "MSG.DELETE", "DELETE", "UPDATE") for name in THREE]
CHANGING = [f"CONSUMER.{verb}.TASKFLOW_IN.{name}" for verb in ("DELETE", "PAUSE", "RESET", "CREATE") for name in ("worker", "replies")]


@pytest.mark.parametrize("server", ["strict by default", "strict: false"])
async def test_an_acknowledgement_that_is_sent_to_the_brokers_own_api_changes_no_stream_and_no_consumer(
    tmp_path: Path, server: str
) -> None:
    """With `strict: false`, as before 2.12, `{"stream": …, "seq": …}` is taken for a request to purge or to remove that message."""
    async with Guarded(tmp_path, jetstream="" if server == "strict by default" else server) as stage:
        kate, operator = await stage.agent("kate"), await stage.agent("operator")
        await kate.start()
        await kate.client.publish("taskflow.cmd.kate.start", b"no command", headers={"Nats-Msg-Id": "a-dead-letter"})
        await eventually(lambda: has_all(operator), within=20.0)
        before = [await operator.js.stream_info(name) for name in THREE]
        taken = [await operator.js.consumer_info("TASKFLOW_IN", name) for name in ("worker", "replies")]
        for at, verb in enumerate(aimed := [*ERASING, *CHANGING]):
            await kate.client.publish(
                "taskflow.cmd.kate.start",
                encoded({"controller_id": "kate/more", "goal": "more"}),
                reply=f"$JS.API.{verb}",
                headers={"Nats-Msg-Id": f"aimed-{at}"},
            )
        assert (await kate.outcome(f"aimed-{len(aimed) - 1}"))["ok"]  # decided in the order of the stream: every PubAck was sent before
        for was in before:
            now = await operator.js.stream_info(was.config.name or "")
            assert (now.state.first_seq, now.created) == (was.state.first_seq, was.created), was.config.name
            assert now.state.messages == now.state.last_seq >= was.state.messages, was.config.name
            assert now.config == was.config
        for had in taken:
            has = await operator.js.consumer_info("TASKFLOW_IN", had.name)
            assert (has.created, has.config) == (had.created, had.config)


async def has_all(operator: Agent) -> bool:
    """Tell whether each stream has something that could be lost."""
    return all([(await operator.js.stream_info(name)).state.messages for name in THREE])


async def test_a_delegation_cannot_be_aimed_at_what_is_guarded(stage: Guarded, kate: Agent) -> None:
    flow_id = await kate.start()
    targets = ["taskflow.cmd.ann.cancel", "taskflow.evt.ann.x.y", "$JS.API.STREAM.PURGE.TASKFLOW_EVT", "_INBOX.ann.x", "_INBOX_worker.x.1"]
    for target in [*targets, "_R_.abc.def", "_GR_.abc.def.taskflow.evt.ann.x.y"]:
        for field in ("to", "cancel_to"):
            answer = await kate.api("delegate", {"flow_id": flow_id, "to": "agent.billing.pay", field: target})
            assert answer["error"]["code"] == "invalid_request", (field, target)
            assert answer["error"]["details"]["path"] == f"/{field}"


async def test_an_agent_asks_the_delegates_that_are_listed_for_it_and_no_others(stage: Guarded, kate: Agent, ann: Agent) -> None:
    asked = []
    billing = await stage.connect("billing")

    async def pay(request: Msg) -> None:
        asked.append((request.headers or {})["Taskflow-Agent"])
        await request.respond(b"{}")

    await billing.subscribe("agent.billing.*", cb=pay)
    await flushed(billing)
    for who, to, cancel_to, path in (
        (kate, "agent.other.pay", "agent.billing.stop", "/to"),
        (kate, "agent.billing.pay", "agent.other.stop", "/cancel_to"),
        (ann, "agent.billing.pay", None, "/to"),
    ):
        answer = await who.api("delegate", {"flow_id": await who.start(), "to": to, "cancel_to": cancel_to, "timeout": "1m"})
        assert (answer["error"]["code"], answer["error"]["details"]["path"]) == ("forbidden", path)
    flow_id = await kate.start()
    answer = await kate.api("delegate", {"flow_id": flow_id, "to": "agent.billing.pay", "headers": {"From": "ann"}})
    assert answer["error"]["code"] == "invalid_request"
    assert (await kate.api("delegate", {"flow_id": flow_id, "to": "agent.billing.pay", "timeout": "1m"}))["ok"]
    await kate.until(flow_id, "running")
    assert asked == ["kate"]


async def everything(stage: Guarded, operator: Agent) -> list[Sent]:
    """Return what lies in all three streams."""
    return [sent for name in THREE for sent in await stage.stream(name, operator)]


async def started(stage: Guarded, operator: Agent, flow_id: str) -> bool:
    """Tell whether a flow's start is in the stream of events."""
    return any(sent.subject.endswith(f"{flow_id}.started") for sent in await stage.stream("TASKFLOW_EVT", operator))


async def arrived(stage: Guarded, operator: Agent, subject: str) -> bool:
    """Tell whether a stream has taken a message on the subject."""
    return any(sent.subject == subject for sent in await everything(stage, operator))


def withheld(stage: Guarded) -> list[str]:
    """Return what the log says of answers that were not given."""
    return [line for log in stage.logs() for line in log.read_text().splitlines() if "service.answer_withheld" in line]
