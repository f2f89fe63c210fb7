"""What `Bus.send` promises: requests leave with their reply subjects, answers are a stream's, and it is said where nobody listens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats import micro
from nats.micro.request import Request as MicroRequest

from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.bus.memory.broker import CoreMessage
from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.nats.requests import LOST
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.bus.port import NO_RESPONDERS, NOT_CONNECTED, Bus, ConsumerSpec, ForwardedRequest, StreamSpec
from tests.contract.rigs import EVT, IN, WORKER, JetStreamRig, Rig, pulling
from tests.eventually import eventually
from tests.ports import kept_port
from tests.standing import stand_still

REPLY = StreamSpec(name="TASKFLOW_REPLY", subjects=("taskflow.reply.*.*",), inbound=True, max_age=86400.0)
REPLIES = ConsumerSpec(stream="TASKFLOW_REPLY")
HEADERS = {"Nats-Msg-Id": "f1:7", "Taskflow-Correlation": "c1"}


@pytest.fixture
async def bus(rig: Rig) -> AsyncIterator[Bus]:
    """An open connection with the streams and a stream for replies."""
    made = rig.connect()
    await made.open()
    await made.prepare((IN, EVT, REPLY), (WORKER, REPLIES))
    yield made
    await made.close()


@pytest.fixture
async def nats_bus(real: JetStreamRig) -> AsyncIterator[JetStreamBus]:
    """The same, on the real server only."""
    made = real.connect()
    await made.open()
    await made.prepare((IN, EVT, REPLY), (WORKER, REPLIES))
    yield made
    await made.close()


def asked(number: int = 1, subject: str = "delegate.work", *, answered: bool = True) -> ForwardedRequest:
    """Build a request with a reply subject of its own, or none."""
    return ForwardedRequest(
        subject=subject, body=b"%d" % number, headers=HEADERS, reply=f"taskflow.reply.ana.c{number}" if answered else None
    )


async def done(heard: CoreMessage) -> bytes:
    """Answer as a delegate does."""
    return b"done " + heard.body


async def silent(_: CoreMessage) -> None:
    """Take a request and keep quiet."""


# --- both adapters -------------------------------------------------------------------------------------------------------------


async def test_a_request_arrives_with_its_headers_and_its_reply_subject(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("delegate.>")
    assert await bus.send([asked()]) == [None]
    one = await asyncio.wait_for(heard.get(), 20)
    assert (one.subject, one.body, one.reply) == ("delegate.work", b"1", "taskflow.reply.ana.c1")
    assert dict(one.headers) == HEADERS


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "echoing"])
async def test_a_plain_responders_answer_is_captured_by_the_stream(rig: Rig, bus: Bus, echo: bool) -> None:
    await rig.agent.respond_on("delegate.work", done, echo=echo)
    async with pulling(bus, REPLIES) as got:
        assert await bus.send([asked()]) == [None]
        await eventually(lambda: got)
    assert (got[0].subject, got[0].body) == ("taskflow.reply.ana.c1", b"done 1")
    assert dict(got[0].headers) == (HEADERS if echo else {})


async def test_fast_answers_to_a_full_batch_are_all_captured_and_disturb_nothing(rig: Rig, bus: Bus) -> None:
    await rig.agent.respond_on("delegate.work", done)
    async with pulling(bus, REPLIES) as got:
        assert await bus.send([asked(number) for number in range(256)]) == [None] * 256
        await eventually(lambda: len(got) == 256)
    assert {one.body for one in got} == {b"done %d" % number for number in range(256)}


async def test_it_is_said_when_nobody_listens(rig: Rig, bus: Bus) -> None:
    assert await bus.send([asked()]) == [NO_RESPONDERS]
    assert await rig.bodies("TASKFLOW_REPLY") == []  # the server's word is no answer
    stop = await rig.agent.respond_on("delegate.work", done)
    assert await bus.send([asked()]) == [None]
    await stop()
    assert await bus.send([asked()]) == [NO_RESPONDERS]


async def test_without_a_reply_subject_nobody_has_to_listen(rig: Rig, bus: Bus) -> None:
    assert await bus.send([asked(1, answered=False)]) == [None]
    heard = await rig.agent.subscribe("delegate.*")
    assert await bus.send([asked(2, answered=False)]) == [None]
    one = await asyncio.wait_for(heard.get(), 20)
    assert (one.body, one.reply) == (b"2", "")


async def test_each_message_of_a_mixed_batch_gets_its_own_verdict(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("delegate.>")
    verdicts = await bus.send(
        [
            asked(1),
            asked(2, "nobody.here"),
            asked(3, "nobody.here", answered=False),
            asked(4, "delegate.*"),
            asked(5, "delegate.other"),
        ]
    )
    assert [verdicts[number] for number in (0, 1, 2, 4)] == [None, NO_RESPONDERS, None, None]
    assert verdicts[3] is not None
    assert "cannot be published on" in verdicts[3]
    await eventually(lambda: heard.qsize() == 2)
    assert [heard.get_nowait().body for _ in range(2)] == [b"1", b"5"]


async def test_two_messages_with_one_reply_subject_are_told_apart(rig: Rig, bus: Bus) -> None:
    await rig.agent.respond_on("delegate.work", silent)
    assert await bus.send([asked(1), asked(1, "nobody.here"), asked(1)]) == [None, NO_RESPONDERS, None]


async def test_batches_sent_at_the_same_time_keep_their_own_verdicts(rig: Rig, bus: Bus) -> None:
    await rig.agent.respond_on("delegate.work", silent)
    batches = [[asked(1, "nobody.here")], [asked(1)], [asked(1, "nobody.here"), asked(1)]]
    assert await asyncio.gather(*map(bus.send, batches)) == [[NO_RESPONDERS], [None], [NO_RESPONDERS, None]]


async def test_order_is_kept_within_and_between_batches(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("delegate.>")
    batches = [[asked(number, f"delegate.w{number % 3}") for number in range(first, first + 256)] for first in range(0, 1024, 256)]
    await asyncio.gather(*map(bus.send, batches))
    await eventually(lambda: heard.qsize() == 1024)
    assert [int(heard.get_nowait().body) for _ in range(1024)] == list(range(1024))


async def test_nothing_to_send_is_nothing_to_say(bus: Bus) -> None:
    assert await bus.send([]) == []


async def test_while_disconnected_it_is_refused_and_not_sent_later(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("delegate.>")
    await rig.outage(bus)
    await eventually(lambda: not bus.connected)
    assert await bus.send([asked(1), asked(2, answered=False)]) == [NOT_CONNECTED] * 2
    await rig.recover(bus)
    await eventually(lambda: bus.connected)

    async def heard_again() -> bool:
        return await bus.send([asked(3)]) == [None]

    await eventually(heard_again)  # the agent has to come back, too
    assert (await asyncio.wait_for(heard.get(), 20)).body == b"3"


@pytest.mark.parametrize(
    "message",
    [
        ForwardedRequest(subject="delegate.work", body=b"x" * (1024 * 1024 + 1), reply="taskflow.reply.ana.c1"),
        ForwardedRequest(subject="delegate.work", body=b"x" * (1024 * 1024 - 20), headers={"A": "b" * 100}),
        ForwardedRequest(subject="delegate work", body=b""),
        ForwardedRequest(subject="delegate.>", body=b""),
        ForwardedRequest(subject="delegate.\ud800", body=b""),
        ForwardedRequest(subject="delegate.work", body=b"", reply=""),
        ForwardedRequest(subject="delegate.work", body=b"", reply="taskflow.reply.*.c1"),
        ForwardedRequest(subject="delegate.work", body=b"", reply="taskflow.reply.ana.c1\r\nPUB y 0"),
        ForwardedRequest(subject="delegate.work", body=b"", reply="taskflow.reply.ana.\ud800"),
        ForwardedRequest(subject="delegate." + "\U00010348" * 600, body=b"", reply="taskflow." + "\U00010348" * 600),
    ],
    ids=[
        "payload",
        "payload-with-headers",
        "blank",
        "wildcard",
        "surrogate",
        "empty-reply",
        "wildcard-reply",
        "injecting-reply",
        "surrogate-reply",
        "long-line",
    ],
)
async def test_what_the_broker_would_hang_up_on_is_refused_and_the_rest_is_sent(rig: Rig, bus: Bus, message: ForwardedRequest) -> None:
    heard = await rig.agent.subscribe("delegate.>")
    before, refused, after = await bus.send([asked(1), message, asked(2)])
    assert (before, after) == (None, None)
    assert refused
    assert refused not in {NO_RESPONDERS, NOT_CONNECTED, LOST}
    await eventually(lambda: heard.qsize() == 2)
    assert bus.connected


async def test_a_service_of_our_own_counts_as_somebody_who_listens(rig: Rig, bus: Bus) -> None:
    async def handler(request: ServiceRequest) -> None:
        await request.answer(b"served " + request.body, {})

    await bus.serve(Service(name="d", version="0.1.0", description="", endpoints=(Endpoint(name="w", subject="delegate.work"),)), handler)
    async with pulling(bus, REPLIES) as got:
        assert await bus.send([asked()]) == [None]
        await eventually(lambda: [one.body for one in got] == [b"served 1"])
    await bus.stop_serving()
    assert await bus.send([asked()]) == [NO_RESPONDERS]


async def test_a_stream_that_captures_the_subject_listens_and_acknowledges_on_the_reply_subject(rig: Rig, bus: Bus) -> None:
    await rig.create_stream({"name": "WORK", "subjects": ["queue.>"]})
    async with pulling(bus, REPLIES) as got:
        assert await bus.send([asked(1, "queue.ana"), asked(2, "nobody.here")]) == [None, NO_RESPONDERS]
        await eventually(lambda: got)
    assert await rig.bodies("WORK") == [b"1"]
    ack = json.loads(got[0].body)
    assert (got[0].subject, ack["stream"], ack["seq"]) == ("taskflow.reply.ana.c1", "WORK", 1)


async def test_a_full_stream_listens_too(rig: Rig, bus: Bus) -> None:
    await rig.create_stream({"name": "WORK", "subjects": ["queue.>"], "max_bytes": 1, "discard": "new"})
    async with pulling(bus, REPLIES) as got:
        assert await bus.send([asked(12, "queue.ana")]) == [None]
        await eventually(lambda: got)
    assert "error" in json.loads(got[0].body)


# --- the memory broker's delegate ----------------------------------------------------------------------------------------------


async def test_a_subscriber_answers_by_hand_on_the_memory_broker() -> None:
    bus = MemoryBus()
    await bus.open()
    await bus.prepare((IN, REPLY), (REPLIES,))
    client = bus.client()
    heard = await client.subscribe("delegate.*")
    assert await bus.send([asked(1), asked(2, answered=False)]) == [None, None]
    for _ in range(2):
        await client.respond(heard.get_nowait(), b"by hand", {"A": "b"})  # the second has no reply subject
    assert [(one.subject, one.body, dict(one.headers)) for one in await client.messages("TASKFLOW_REPLY")] == [
        ("taskflow.reply.ana.c1", b"by hand", {"A": "b"})
    ]
    await bus.close()


# --- the real server -----------------------------------------------------------------------------------------------------------


async def test_a_micro_service_answers(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    async def handler(request: MicroRequest) -> None:
        await request.respond(request.data.upper(), headers={"Kind": "micro"})

    service = await micro.add_service(real.nats.client, name="delegate", version="1.0.0")
    await service.add_endpoint(name="work", subject="delegate.work", handler=handler)
    await real.nats.client.rtt()
    await real.nats.client.rtt()
    async with pulling(nats_bus, REPLIES) as got:
        assert await nats_bus.send([ForwardedRequest(subject="delegate.work", body=b"hi", reply="taskflow.reply.ana.c1")]) == [None]
        await eventually(lambda: got)
    assert (got[0].body, got[0].headers["Kind"]) == (b"HI", "micro")
    await service.stop()


async def test_no_subscription_stays_behind(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    subscriptions = len(nats_bus._connection.client._subs)
    await nats_bus.send([asked(number) for number in range(50)])
    await real.server.restart(kill=True)
    await nats_bus.send([asked(1)])
    assert len(nats_bus._connection.client._subs) == subscriptions


async def test_kill_9_in_the_middle_ends_the_batch_at_once(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    loop = asyncio.get_running_loop()
    assert real.server.pid is not None
    await stand_still(real.server.pid)  # takes the messages, answers nothing
    sending = [asyncio.create_task(nats_bus.send([asked(number) for number in range(256)])) for _ in range(3)]
    await eventually(lambda: nats_bus._requests._batch is not None and len(nats_bus._requests._batch._written) == 256)
    os.kill(real.server.pid, signal.SIGKILL)
    started = loop.time()
    batches = await asyncio.gather(*sending)
    assert loop.time() - started < NatsOptions(servers=()).publish_timeout, "it waited for an answer"
    assert batches[0] == [LOST] * 256
    assert batches[1:] == [[NOT_CONNECTED] * 256] * 2  # it was not their turn yet
    await real.server.restart(kill=True)
    await eventually(lambda: nats_bus.connected)
    await eventually(lambda: real.nats.client.is_connected)
    await real.agent.respond_on("delegate.after", silent)
    assert await nats_bus.send([asked(1, "delegate.after"), asked(2, "nobody.here")]) == [None, NO_RESPONDERS]


async def test_nothing_hangs_when_the_server_dies_under_a_stream_of_batches(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    heard = await real.agent.subscribe("delegate.>")
    verdicts: list[str | None] = []

    async def keep_sending() -> None:
        number = 0
        while NOT_CONNECTED not in verdicts and LOST not in verdicts:
            verdicts.extend(await nats_bus.send([asked(number + one) for one in range(256)]))
            number += 256

    sending = asyncio.create_task(keep_sending())
    await eventually(lambda: heard.qsize() > 1000)
    await real.server.kill()
    await asyncio.wait_for(sending, 20)
    assert set(verdicts) <= {None, NOT_CONNECTED, LOST}
    await real.server.start()
    await eventually(lambda: nats_bus.connected)


async def test_a_server_that_hangs_costs_one_timeout_and_its_late_pong_ends_nothing(real: JetStreamRig) -> None:
    loop, patience = asyncio.get_running_loop(), 2.0
    bus = JetStreamBus(NatsOptions(servers=(real.server.url,), publish_timeout=patience))
    await bus.open()
    await real.agent.respond_on("delegate.work", silent)
    assert real.server.pid is not None
    await stand_still(real.server.pid)
    started = loop.time()
    first, second = await asyncio.gather(bus.send([asked(1)]), bus.send([asked(2)]))
    assert loop.time() - started < 2 * patience
    in_doubt = ["no word from the broker within 2 s: may or may not have been sent"]
    assert first == in_doubt
    # It gets its turn as the first one gives up: before its own time is over where the process was held up between the two.
    assert second in (["not sent within 2 s"], in_doubt)
    os.kill(real.server.pid, signal.SIGCONT)
    # Plain nats-py stops reading when a PONG comes that nobody waits for any more, and says it is connected.
    for _ in range(3):
        assert await bus.send([asked(3), asked(4, "nobody.here")]) == [None, NO_RESPONDERS]
    await bus.close()


async def test_a_cancelled_send_leaves_the_next_one_alone(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    await real.agent.respond_on("delegate.work", silent)
    sending = asyncio.create_task(nats_bus.send([asked(number) for number in range(256)]))
    asyncio.get_running_loop().call_soon(sending.cancel)
    await asyncio.wait({sending})
    assert sending.cancelled()
    assert await nats_bus.send([asked(1), asked(2, "nobody.here")]) == [None, NO_RESPONDERS]


async def test_permissions_that_are_missing_are_named(tmp_path: Path) -> None:
    users = """
    authorization { users: [
      { user: boss, password: secret }
      { user: poor, password: secret, permissions: { publish: ["delegate.>"], subscribe: ["_INBOX.>", "taskflow.reply.ana.*"] } }
    ] }
    """
    server = EmbeddedServer(tmp_path / "guarded", kept_port(), sync_always=False, extra_config=users)
    await server.start()
    bus = JetStreamBus(NatsOptions(servers=(server.url,), user="poor", password="secret"))
    await bus.open()
    unheard = ForwardedRequest(subject="delegate.work", body=b"", reply="taskflow.reply.BOB.c1")
    verdicts = await bus.send([asked(1, "Secret.work"), unheard, asked(2)])
    assert verdicts[0] == "the credentials may not publish on Secret.work"
    assert verdicts[1] is not None
    assert verdicts[1].startswith("the credentials may not subscribe to taskflow.reply.BOB.c1")
    assert verdicts[2] == NO_RESPONDERS
    assert bus.connected
    await bus.close()
    await server.stop()
