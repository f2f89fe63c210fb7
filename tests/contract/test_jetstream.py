"""What only a real server can show: kills, deletions, bad credentials, limits, poison on the wire, and that idling is idle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest
from nats.errors import FlushTimeoutError
from structlog.testing import capture_logs

from nats_taskflow.bus.admission import CALLER_BOUNDS
from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.nats.inspect import InspectClient, NoWorkerAnswer, StreamReader
from nats_taskflow.bus.nats.pull import Pull
from nats_taskflow.bus.nats.server import EmbeddedServer, ServerRefused, ServerTaken, find_server
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec, Delivery, Nak, OutgoingMessage, PublishFailed, StreamSpec, Term
from nats_taskflow.errors import BusLost, ConsumerTaken, NotAllowed, TopologyRefused
from tests.contract.rigs import ACK, EVT, IN, WORKER, JetStreamRig, jetstream_rig, pulling
from tests.eventually import eventually
from tests.ports import kept_port
from tests.reloading import reload
from tests.standing import stand_still

CMD = "taskflow.cmd.ana.start"

AUTH = """
authorization { users: [
  { user: boss, password: secret }
  { user: poor, password: secret, permissions: { publish: ["taskflow.evt.ok.>", "$JS.API.STREAM.INFO.*"], subscribe: [">"] } }
  { user: ears, password: secret, permissions: { publish: [], subscribe: ["_INBOX_Ears.>"] } }
] }
"""


@pytest.fixture
async def bus(real: JetStreamRig) -> AsyncIterator[JetStreamBus]:
    """An open, prepared connection."""
    made = real.connect()
    await made.open()
    await made.prepare((IN, EVT), (WORKER,))
    yield made
    await made.close()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server that wants a password."""
    server = EmbeddedServer(tmp_path / "guarded", kept_port(), sync_always=False, extra_config=AUTH)
    await server.start()
    yield server
    await server.stop()


def event(number: int, subject: str = "taskflow.evt.ana.f1.started") -> OutgoingMessage:
    """Build an event."""
    return OutgoingMessage(subject=subject, body=b"%d" % number, msg_id=f"f1:{number}")


async def clocked(work: asyncio.Future[object] | asyncio.Task[object]) -> float:
    """Return how many seconds the work took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.wait({work})
    return loop.time() - started


async def raw(real: JetStreamRig, frame: bytes) -> None:
    """Write a protocol frame as no decent client would."""
    host, port = real.server.url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + frame + b"PING\r\n")
    await writer.drain()
    assert await reader.readline() == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()


# --- the server dies -----------------------------------------------------------------------------------------------------------


async def test_after_kill_9_and_a_restart_the_pull_resumes_within_five_seconds_and_nothing_is_lost(real: JetStreamRig) -> None:
    bus = JetStreamBus(NatsOptions(servers=(real.server.url,)))  # with the default heartbeat: the watchdog is too slow to help
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    for number in range(40):
        await real.agent.publish(CMD, b"%d" % number)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: got)
        for round_ in range(2):
            await real.server.restart(kill=True)
            await eventually(lambda: real.nats.client.is_connected)
            number = 40 + round_
            await real.agent.publish(CMD, b"%d" % number)
            await eventually(lambda: number in {int(one.body) for one in got}, within=5)  # noqa: B023  awaited within the round
        await eventually(lambda: {int(one.body) for one in got} == set(range(42)))
    await bus.close()


async def test_kill_9_in_the_middle_of_a_burst_loses_nothing(real: JetStreamRig, bus: JetStreamBus) -> None:
    for number in range(3000):
        await real.nats.client.publish(CMD, b"%d" % number)
    await real.nats.client.flush()
    in_hand: list[Delivery] = []
    seen: set[int] = set()

    def take(delivery: Delivery) -> None:
        seen.add(int(delivery.body))
        in_hand.append(delivery)
        if len(in_hand) > 50:
            for one in in_hand:
                bus.settle(one, ACK)
            in_hand.clear()
            bus.wake()

    pull = asyncio.create_task(bus.pull(WORKER, take, lambda: 100 - len(in_hand)))
    await eventually(lambda: len(seen) > 500)
    await real.server.restart(kill=True)
    await eventually(lambda: len(seen) == 3000, within=10)
    pull.cancel()
    await asyncio.wait({pull})


async def test_losing_the_server_fails_outstanding_publishes_at_once(real: JetStreamRig, bus: JetStreamBus) -> None:
    assert real.server.pid is not None
    await stand_still(real.server.pid)  # takes the messages, answers nothing
    futures = [bus.publish(event(number)) for number in range(100)]
    loop = asyncio.get_running_loop()
    loop.call_later(0.2, os.kill, real.server.pid, signal.SIGKILL)
    started = loop.time()
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert loop.time() - started < NatsOptions(servers=()).publish_timeout, "they waited for an answer"
    assert all(isinstance(one, PublishFailed) and not one.refused for one in outcomes)
    await real.server.restart(kill=True)
    await eventually(lambda: bus.connected)
    assert (await bus.publish(event(1000))).stream == "TASKFLOW_EVT"


async def test_a_publish_that_is_never_acknowledged_fails_at_its_timeout(real: JetStreamRig) -> None:
    bus = JetStreamBus(NatsOptions(servers=(real.server.url,), publish_timeout=0.3))
    await bus.open()
    silent = await real.agent.subscribe("black.hole")  # somebody listens, so there is no 503, and nobody answers
    with pytest.raises(PublishFailed, match=r"no acknowledgement within 0\.3 s") as failed:
        await asyncio.wait_for(bus.publish(event(1, "black.hole")), 10)
    assert not failed.value.refused
    await eventually(lambda: silent.qsize() == 1)
    await bus.close()


async def test_settlements_made_during_an_outage_arrive_after_it(real: JetStreamRig, bus: JetStreamBus) -> None:
    await real.agent.publish(CMD, b"1")
    async with pulling(bus) as got:
        await eventually(lambda: got)
        await real.server.restart(kill=False)
        bus.settle(got[0], ACK)
        await eventually(lambda: bus.connected)

        async def settled() -> bool:
            return (await bus.backlog(WORKER)).floor == 1

        await eventually(settled)


async def test_a_server_that_hangs_is_noticed_and_the_pull_goes_on_after_it(real: JetStreamRig) -> None:
    bus = JetStreamBus(NatsOptions(servers=(real.server.url,), ping_interval=0.5), heartbeat=0.3)
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    assert real.server.pid is not None
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: bus.pull_requests == 1)
        await stand_still(real.server.pid)
        await eventually(lambda: not bus.connected)
        os.kill(real.server.pid, signal.SIGCONT)
        await eventually(lambda: bus.connected)
        await eventually(lambda: real.nats.client.is_connected)
        await real.agent.publish(CMD, b"1")
        await eventually(lambda: got)
    await bus.close()


# --- the operator interferes ---------------------------------------------------------------------------------------------------


async def test_the_clock_of_the_server_is_measured_with_every_look(bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 9: it is this machine's clock here; set back by an hour for us, the server's is an hour ahead."""
    await bus.inspect()
    assert abs(bus.offset) < 1_000_000
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - 3600 * 1_000_000_000)
    await bus.inspect()
    assert 3599 * 1_000_000 < bus.offset < 3601 * 1_000_000


async def test_a_deleted_stream_is_made_again(real: JetStreamRig, bus: JetStreamBus) -> None:
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: bus.pull_requests)
        assert "error" not in await real.nats.api("STREAM.DELETE.TASKFLOW_IN")

        async def exists() -> bool:
            return "error" not in await real.nats.api("STREAM.INFO.TASKFLOW_IN")

        await eventually(exists)
        await real.agent.publish(CMD, b"1")
        await eventually(lambda: got)


async def test_a_stream_that_may_not_keep_its_messages_from_being_removed_is_warned_of(real: JetStreamRig, bus: JetStreamBus) -> None:
    """As an operator made it: the server lets no stream with roll-ups refuse a purge."""
    await real.create_stream({"name": "E", "subjects": ["e.>"], "storage": "file", "allow_rollup_hdrs": True, "deny_delete": True})
    (warned,) = await bus.prepare((StreamSpec(name="E", subjects=("e.>",), inbound=False, max_age=60),), ())
    assert "stream E: deny_purge" in warned
    assert "provision" in warned


async def test_limits_set_on_the_consumer_are_kept(real: JetStreamRig, bus: JetStreamBus) -> None:
    source = ConsumerSpec(stream="TASKFLOW_IN", consumer="limited", ack_wait=30.0)
    await bus.prepare((IN, EVT), (source,))
    config = (await real.nats.api("CONSUMER.INFO.TASKFLOW_IN.limited"))["config"]
    config |= {"max_batch": 10, "max_expires": 5_000_000_000, "max_bytes": 2_000_000}
    body = {"stream_name": "TASKFLOW_IN", "config": config, "action": "update"}
    answer = await real.nats.api("CONSUMER.CREATE.TASKFLOW_IN.limited", body)
    assert "error" not in answer, answer
    for number in range(40):
        await real.agent.publish(CMD, b"%d" % number)
    async with pulling(bus, source, settle=ACK) as got:
        await eventually(lambda: len(got) == 40)
        assert bus.pull_requests < 40


async def test_a_message_is_pulled_that_was_too_large_for_the_broker_when_the_pull_began(tmp_path: Path) -> None:
    """A server that is told to carry more tells nobody; its new connections are told."""
    server = EmbeddedServer(tmp_path / "raised", kept_port(), sync_always=False, max_payload=64 * 1024)
    await server.start()
    bus = JetStreamBus(NatsOptions(servers=(server.url,)))
    await bus.open()
    source = ConsumerSpec(stream="TASKFLOW_IN", max_bytes=100_000)
    await bus.prepare((IN, EVT), (source,))
    async with pulling(bus, source, settle=ACK) as got:
        await eventually(lambda: bus.pull_requests)
        await reload(server, "max_payload: 1MB")
        agent = await nats.connect(server.url)
        await agent.jetstream().publish(CMD, b"x" * 900_000)
        await agent.jetstream().publish(CMD, b"next")
        await eventually(lambda: [len(one.body) for one in got] == [900_000, 4])
        await agent.close()
    await bus.close()
    await server.stop()


async def test_what_a_changed_consumer_gave_up_on_comes_again_once_it_is_changed_back(real: JetStreamRig, bus: JetStreamBus) -> None:
    given_up = await real.agent.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>")
    await real.change_consumer(WORKER, {"max_deliver": 2})
    got: list[int] = []
    able = False

    def take(delivery: Delivery) -> None:
        got.append(int(delivery.body))
        bus.settle(delivery, ACK if able else Nak(0.05))

    pull = asyncio.create_task(bus.pull(WORKER, take, lambda: 10))
    await real.agent.publish(CMD, b"1")
    async with asyncio.timeout(20):
        await given_up.get()
    assert got == [1, 1]
    assert len(await bus.inspect()) == 1
    able = True
    await real.change_consumer(WORKER, {"max_deliver": -1})
    assert bus.take_repaired() == ()
    assert await bus.inspect() == []
    assert bus.take_repaired() == (WORKER,)
    assert bus.take_repaired() == (), "told once"
    assert await bus.rewind(WORKER, 1)
    await eventually(lambda: got == [1, 1, 1])
    pull.cancel()
    await asyncio.wait({pull})


async def test_a_paused_consumer_is_found_by_an_inspection_and_is_no_reason_not_to_start(real: JetStreamRig, bus: JetStreamBus) -> None:
    until = (datetime.now(UTC) + timedelta(days=30)).isoformat()
    await real.nats.api("CONSUMER.PAUSE.TASKFLOW_IN.worker", {"pause_until": until})
    assert await bus.prepare((IN, EVT), (WORKER,)) == []
    (flaw,) = await bus.inspect()
    assert "consumer worker of stream TASKFLOW_IN is paused" in flaw
    await real.nats.api("CONSUMER.PAUSE.TASKFLOW_IN.worker", {})
    assert await bus.inspect() == []
    assert bus.take_repaired() == (), "what is paused is not given up on"


async def test_a_consumer_that_another_database_has_taken_meanwhile_is_neither_rewound_nor_pulled(
    real: JetStreamRig, bus: JetStreamBus
) -> None:
    here, there = (ClaimHolder(database=name, host="build-1", store=f"/srv/{name}/flows.db") for name in ("a1", "b2"))
    await bus.prepare((IN, EVT), (WORKER,), holder=here)
    pull = asyncio.create_task(bus.pull(WORKER, lambda _: None, lambda: 10))
    await eventually(lambda: bus.pull_requests)
    other = real.connect()
    await other.open()
    await other.prepare((IN, EVT), (WORKER,), holder=there, adopt=True)
    with pytest.raises(ConsumerTaken, match="b2"):
        await bus._topology.recreate(WORKER)
    await real.server.kill()
    await real.server.start()
    async with asyncio.timeout(20):
        with pytest.raises(ConsumerTaken, match="b2"):
            await pull
    await other.close()


async def test_somebody_who_pulls_from_a_consumer_that_is_nobodys_yet_is_warned_of(real: JetStreamRig, bus: JetStreamBus) -> None:
    other = real.connect()
    await other.open()
    assert await other.prepare((IN, EVT), (WORKER,)) == []
    async with pulling(bus, WORKER, settle=ACK) as got:
        await real.agent.publish(CMD, b"1")
        await eventually(lambda: got)
        (warning,) = await other.prepare((IN, EVT), (WORKER,), holder=ClaimHolder(database="a1", host="build-1", store="/srv/flows.db"))
        assert "somebody else pulls from it" in warning
    await other.close()


async def test_filters_of_a_consumer_are_extended_with_a_warning(real: JetStreamRig, bus: JetStreamBus) -> None:
    source = ConsumerSpec(stream="TASKFLOW_IN", consumer="some", filters=("taskflow.resume",))
    await bus.prepare((IN, EVT), (source,))
    wider = ConsumerSpec(stream="TASKFLOW_IN", consumer="some", filters=("taskflow.resume", "taskflow.cmd.ana.*"))
    warnings = await bus.prepare((IN, EVT), (wider,))
    assert len(warnings) == 1
    assert "filter_subjects was extended" in warnings[0]
    async with pulling(bus, wider, settle=ACK) as got:
        await real.agent.publish(CMD, b"1")
        await eventually(lambda: got)


# --- nothing spins -------------------------------------------------------------------------------------------------------------


async def test_a_busy_pull_never_asks_for_more_than_there_is_room_for(real: JetStreamRig, bus: JetStreamBus) -> None:
    in_hand: list[Delivery] = []
    most = done = 0

    def take(delivery: Delivery) -> None:
        nonlocal most
        in_hand.append(delivery)
        most = max(most, len(in_hand))

    for number in range(4000):
        await real.nats.client.publish(CMD, b"%d" % number)
    await real.nats.client.flush()
    with capture_logs() as logs:
        pull = asyncio.create_task(bus.pull(WORKER, take, lambda: 64 - len(in_hand)))
        while done < 4000:
            await eventually(lambda: in_hand)
            for one in in_hand[: len(in_hand) // 2 + 1]:  # settled in parts: requests overlap
                bus.settle(one, ACK)
                done += 1
            del in_hand[: len(in_hand) // 2 + 1]
            bus.wake()
        pull.cancel()
        await asyncio.wait({pull})
    assert most <= 64
    assert not [line for line in logs if line["event"].startswith("pull.")]


async def test_a_request_that_large_messages_have_filled_is_followed_by_the_next_at_once(
    real: JetStreamRig, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off: list[float] = []
    monkeypatch.setattr(Pull, "_back_off", lambda pull: put_off.append(pull._loop.time()))
    for number in range(20):
        await real.agent.publish(CMD, b"%d" % number + b"x" * 250_000)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 20)
        assert bus.pull_requests >= 20 * 250_000 // (bus.max_payload + 64 * 1024), "each has a bound in bytes"
        assert put_off == []


async def test_an_idle_pull_sends_one_request(bus: JetStreamBus) -> None:
    async with pulling(bus):
        await eventually(lambda: bus.pull_requests)
        await idle(2.5)  # five heartbeats
        assert bus.pull_requests == 1


async def test_a_pull_that_waits_for_settlements_does_not_ask_again_and_again(real: JetStreamRig, bus: JetStreamBus) -> None:
    source = ConsumerSpec(stream="TASKFLOW_IN", consumer="narrow", ack_wait=30.0, max_ack_pending=5)
    await bus.prepare((IN, EVT), (source,))
    for number in range(20):
        await real.agent.publish(CMD, b"%d" % number)
    async with pulling(bus, source) as got:
        await eventually(lambda: len(got) == 5)
        before = bus.pull_requests
        await idle(2.5)
        assert bus.pull_requests - before <= 2
        assert len(got) == 5


async def test_a_pull_without_a_stream_backs_off(real: JetStreamRig, bus: JetStreamBus) -> None:
    async with pulling(bus, ConsumerSpec(stream="NOWHERE")):
        await idle(2.5)
        assert bus.pull_requests <= 6


async def test_a_pull_without_the_permission_backs_off(guarded: EmbeddedServer) -> None:
    boss = JetStreamBus(NatsOptions(servers=(guarded.url,), user="boss", password="secret"))
    await boss.open()
    await boss.prepare((IN, EVT), (WORKER,))
    poor = JetStreamBus(NatsOptions(servers=(guarded.url,), user="poor", password="secret"), heartbeat=0.5)
    await poor.open()
    async with pulling(poor):
        await idle(2.5)
        assert poor.pull_requests <= 3
    await poor.close()
    await boss.close()


async def idle(seconds: float) -> None:
    """Let time pass: what is asserted afterwards is that nothing happened in it."""
    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=seconds)


# --- connecting ----------------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_said_at_once(guarded: EmbeddedServer) -> None:
    bus = JetStreamBus(NatsOptions(servers=(guarded.url,), user="boss", password="wrong-hunter2"))
    opening = asyncio.ensure_future(bus.open())
    assert await clocked(opening) < 1
    with pytest.raises(BusLost, match="refuses the credentials") as lost:
        opening.result()
    assert "nats.user" in str(lost.value)
    assert "hunter2" not in str(lost.value)
    assert not bus.lost.done()


async def test_no_credentials_where_some_are_needed_is_said_at_once(guarded: EmbeddedServer) -> None:
    opening = asyncio.ensure_future(JetStreamBus(NatsOptions(servers=(guarded.url,))).open())
    assert await clocked(opening) < 1
    with pytest.raises(BusLost, match="refuses the credentials"):
        opening.result()


@pytest.mark.parametrize(
    "url,reason",
    [("nats://127.0.0.1:1", "refused"), ("nats://no-such-host.invalid:4222", "")],
    ids=["nobody-listens", "no-such-host"],
)
async def test_an_unreachable_server_is_given_up_within_the_connect_timeout(url: str, reason: str) -> None:
    bus = JetStreamBus(NatsOptions(servers=(url,), connect_timeout=0.7))
    opening = asyncio.ensure_future(bus.open())
    assert await clocked(opening) < 1.5
    with pytest.raises(BusLost, match=r"cannot be reached within 0\.7 s") as lost:
        opening.result()
    assert reason in str(lost.value).lower()


async def test_a_server_that_says_nothing_is_given_up_within_the_connect_timeout() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = JetStreamBus(NatsOptions(servers=(f"nats://127.0.0.1:{port}",), connect_timeout=0.7))
    opening = asyncio.ensure_future(bus.open())
    assert await clocked(opening) < 3
    with pytest.raises(BusLost, match="cannot be reached"):
        opening.result()
    server.close()
    await server.wait_closed()


async def test_a_missing_credential_file_is_said_by_name(guarded: EmbeddedServer) -> None:
    with pytest.raises(BusLost, match=r"no-such\.creds cannot be read"):
        await JetStreamBus(NatsOptions(servers=(guarded.url,), creds="no-such.creds")).open()


async def test_the_address_and_the_options_show_no_credentials(guarded: EmbeddedServer) -> None:
    url = guarded.url.replace("nats://", "nats://boss:secret@")
    options = NatsOptions(servers=(url,), user="boss", password="secret")
    bus = JetStreamBus(options)
    assert bus.address == guarded.url
    await bus.open()
    assert bus.address == guarded.url
    assert "secret" not in repr(options)
    assert "boss" not in repr(options)
    await bus.close()


async def test_a_connection_the_server_ends_for_good_is_reported_lost(tmp_path: Path) -> None:
    # nats-py closes itself, whatever its reconnect settings, on most `-ERR` lines: here the reload that makes the user unknown.
    server = EmbeddedServer(tmp_path / "s", kept_port(), sync_always=False, extra_config=AUTH)
    await server.start()
    bus = JetStreamBus(NatsOptions(servers=(server.url,), user="boss", password="secret"))
    await bus.open()
    conf = tmp_path / "s" / "nats-server.conf"
    conf.write_text(conf.read_text().replace("user: boss, password: secret", "user: boss, password: changed"))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGHUP)
    assert "auth" in (await asyncio.wait_for(bus.lost, 5)).lower()
    assert not bus.connected
    await bus.close()
    await server.stop()


# --- permissions ---------------------------------------------------------------------------------------------------------------


async def test_missing_permissions_are_named_in_bounded_time(guarded: EmbeddedServer) -> None:
    bus = JetStreamBus(NatsOptions(servers=(guarded.url,), user="poor", password="secret"))
    await bus.open()
    preparing = asyncio.ensure_future(bus.prepare((IN, EVT), (WORKER,)))
    assert await clocked(preparing) < 2
    with pytest.raises(TopologyRefused, match=r"lack a permission: publish on \$JS\.API\.STREAM\.CREATE\.TASKFLOW_IN"):
        preparing.result()
    await bus.close()


async def test_a_command_is_told_a_subject_that_it_may_not_use_as_it_is_written(guarded: EmbeddedServer) -> None:
    """nats-py gives what the server says in lower case, and subjects are not the same in it."""
    boss = JetStreamBus(NatsOptions(servers=(guarded.url,), user="boss", password="secret"))
    await boss.open()
    await boss.prepare((IN, EVT), (WORKER,))
    await boss.publish(event(1))
    await boss.close()
    async with StreamReader(NatsOptions(servers=(guarded.url,), user="poor", password="secret")) as history:
        with pytest.raises(NotAllowed) as denied:
            await anext(aiter(history.messages(EVT.name)))
    assert denied.value.subject.startswith(f"$JS.API.CONSUMER.CREATE.{EVT.name}")
    async with InspectClient(NatsOptions(servers=(guarded.url,), user="ears", password="secret", inbox_prefix="_INBOX_Ears")) as client:
        with pytest.raises(NotAllowed) as denied:
            await anext(client.listen("Taskflow.Evt.>"))
        assert denied.value.subject == "Taskflow.Evt.>"


@pytest.mark.parametrize("late", [False, True])
async def test_a_silence_is_late_only_where_somebody_may_have_heard_the_request(real: JetStreamRig, late: bool) -> None:
    """Whatever the subject is called: an agent of the name `within` was told of a late answer where no worker runs."""
    subject = "taskflow.api.within.who"
    async with InspectClient(NatsOptions(servers=(real.server.url,))) as client:
        if late:
            await real.nats.client.subscribe(subject)
            await real.nats.client.flush()
        with pytest.raises(NoWorkerAnswer) as silence:
            await client.ask(subject, b"", within=0.5)
    assert silence.value.late is late


async def test_a_publish_without_permission_is_refused_at_once(guarded: EmbeddedServer) -> None:
    bus = JetStreamBus(NatsOptions(servers=(guarded.url,), user="poor", password="secret"))
    await bus.open()
    denied = bus.publish(event(1))
    assert await clocked(denied) < 1  # type: ignore[arg-type]
    with pytest.raises(PublishFailed, match="may not publish") as failed:
        denied.result()
    assert failed.value.refused
    assert bus.connected
    await bus.close()


async def test_a_server_without_jetstream_is_said_so(tmp_path: Path) -> None:
    server = EmbeddedServer(
        tmp_path / "s", kept_port(), sync_always=False, extra_config="accounts { A: { users: [{user: a, password: a}] } }"
    )
    await server.start()
    bus = JetStreamBus(NatsOptions(servers=(server.url,), user="a", password="a"))
    await bus.open()
    with pytest.raises(TopologyRefused, match="JetStream"):
        await bus.prepare((IN,), ())
    await bus.close()
    await server.stop()


# --- messages on the wire ------------------------------------------------------------------------------------------------------


def hpub(header: bytes, body: bytes) -> bytes:
    """Spell a publish with raw header bytes."""
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (CMD.encode(), len(header), len(header) + len(body), header, body)


@pytest.mark.parametrize(
    "frame",
    [
        b"PUB taskflow.cmd.ana.\xff\xfe 1\r\n1\r\n",
        hpub(b"NATS/1.0", b"1"),
        hpub(b"\xff", b"1"),
        hpub(b"NATS/1.0 409 \xff\xff\r\n\r\n", b"1"),
        hpub(b"NATS/1.0\r\n\xff: \xff\r\nA\r\n\r\n", b"1"),
    ],
    ids=["subject", "short-header", "junk-header", "status", "header-lines"],
)
async def test_bytes_that_are_no_text_reach_the_worker_and_do_not_end_its_reading(
    real: JetStreamRig, bus: JetStreamBus, frame: bytes
) -> None:
    # Plain nats-py stops reading here for good: the message would be redelivered after every reconnect.
    await raw(real, frame)
    await real.agent.publish(CMD, b"2")
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: [one.body for one in got] == [b"1", b"2"])


async def test_a_stored_message_cannot_pose_as_a_status_of_the_server(real: JetStreamRig, bus: JetStreamBus) -> None:
    await raw(real, hpub(b"NATS/1.0 409 Consumer Deleted\r\n\r\n", b""))
    await raw(real, hpub(b"NATS/1.0\r\nStatus: 503\r\n\r\n", b""))
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 2)
        assert bus.pull_requests == 1


async def test_term_gives_its_reason_to_the_advisory(real: JetStreamRig, bus: JetStreamBus) -> None:
    heard = await real.agent.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>")
    await real.agent.publish(CMD, b"1")
    async with pulling(bus, settle=Term(reason="not JSON")):
        advisory = await asyncio.wait_for(heard.get(), 20)
    assert json.loads(advisory.body)["reason"] == "not JSON"


async def test_subscriptions_that_the_server_does_not_take_end_the_start_with_a_sentence(
    bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its limit on them is too low, or it goes at that moment."""

    async def flush() -> None:
        raise FlushTimeoutError

    async def handle(_: ServiceRequest) -> None: ...

    monkeypatch.setattr(bus._connection, "flush", flush)
    with pytest.raises(BusLost, match="subscriptions") as ended:
        await bus.serve(Service(name="t", version="1.0.0", description="d", endpoints=()), handle)
    assert ended.value.exit_code == 69


async def test_the_service_can_be_discovered(real: JetStreamRig, bus: JetStreamBus) -> None:
    async def handler(request: ServiceRequest) -> None:
        await request.answer(b"", {})

    endpoint = Endpoint(name="status", subject="taskflow.api.*.status", metadata={"schema": "status"})
    await bus.serve(Service(name="taskflow", version="0.1.0", description="Durable agent flows", endpoints=(endpoint,)), handler)
    body, _ = await real.agent.request("$SRV.INFO.taskflow", b"")
    info = json.loads(body)
    assert (info["name"], info["version"], info["endpoints"][0]["metadata"]) == ("taskflow", "0.1.0", {"schema": "status"})
    await bus.stop_serving()
    with pytest.raises(ConnectionError):
        await real.agent.request("$SRV.INFO.taskflow", b"")


async def test_its_statistics_are_what_askers_see(real: JetStreamRig, bus: JetStreamBus) -> None:
    worked: list[int] = []
    gate = asyncio.Event()

    async def handler(request: ServiceRequest) -> None:
        began = time.perf_counter_ns()
        await gate.wait()
        worked.append(time.perf_counter_ns() - began)
        await request.answer(request.body, {"Nats-Service-Error-Code": "409", "Nats-Service-Error": "no"} if request.body == b"bad" else {})

    endpoints = tuple(Endpoint(name=name, subject=f"taskflow.api.*.{name}") for name in ("status", "start"))
    await bus.serve(Service(name="taskflow", version="0.1.0", description="Durable agent flows", endpoints=endpoints), handler)
    began = time.perf_counter_ns()
    asking = [asyncio.ensure_future(real.agent.request("taskflow.api.kate.start", body)) for body in (b"good", b"bad", b"bad")]
    await real.agent.request("$SRV.PING.taskflow", b"")  # the server has passed them on before this
    gate.set()
    await asyncio.gather(*asking)
    seen = time.perf_counter_ns() - began
    body, _ = await real.agent.request("$SRV.STATS.taskflow", b"")
    status, start = json.loads(body)["endpoints"]
    assert (start["num_requests"], start["num_errors"], start["last_error"]) == (3, 2, "409: no")
    assert sum(worked) <= start["processing_time"] <= 3 * seen
    assert max(worked) <= 3 * start["average_processing_time"]
    assert (status["num_requests"], status["num_errors"], status["processing_time"], status["last_error"]) == (0, 0, 0, "")


async def test_requests_that_no_endpoint_covers_are_counted_in_an_endpoint_of_their_own(real: JetStreamRig, bus: JetStreamBus) -> None:
    async def handler(request: ServiceRequest) -> None:
        known = request.subject.endswith(".start")
        await request.answer(b"", {} if known else {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "no such verb"})

    start, other = Endpoint(name="start", subject="taskflow.api.*.start"), Endpoint(name="other", subject="taskflow.api.*.*")
    service = Service(name="taskflow", version="0.1.0", description="Durable agent flows", endpoints=(start,), catch_all=(other,))
    await bus.serve(service, handler)
    for verb in ("start", "dance", "start", "sing", "sing"):
        await real.agent.request(f"taskflow.api.kate.{verb}", b"")
    body, _ = await real.agent.request("$SRV.STATS.taskflow", b"")
    told = {one["name"]: (one["num_requests"], one["num_errors"], one["last_error"]) for one in json.loads(body)["endpoints"]}
    assert told == {"start": (2, 0, ""), "other": (3, 3, "400: no such verb")}


async def test_the_server_sends_each_request_once_though_a_catch_all_covers_it_too(
    real: JetStreamRig, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, came = bus._connection.client, list[bytes]()
    process = client._process_msg

    async def counted(sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        came.append(bytes(subject))
        await process(sid, subject, reply, data, headers)

    async def handler(request: ServiceRequest) -> None:
        await request.answer(b"", {})

    start, other = Endpoint(name="start", subject="taskflow.api.*.start"), Endpoint(name="other", subject="taskflow.api.*.*")
    service = Service(name="taskflow", version="0.1.0", description="Durable agent flows", endpoints=(start,), catch_all=(other,))
    await bus.serve(service, handler)
    monkeypatch.setattr(client, "_process_msg", counted)
    for verb in ("start", "dance"):
        await real.agent.request(f"taskflow.api.kate.{verb}", b"")
    await real.agent.request("$SRV.PING.taskflow", b"")  # the server has passed them on before this
    assert came == [b"taskflow.api.kate.start", b"taskflow.api.kate.dance", b"$SRV.PING.taskflow"]


async def test_a_place_is_free_when_the_answer_has_left(real: JetStreamRig, bus: JetStreamBus) -> None:
    begun, goes_on = 0, asyncio.Event()

    async def handler(request: ServiceRequest) -> None:
        nonlocal begun
        begun += 1
        await goes_on.wait()
        await request.answer(b"x" * 100_000, {})

    endpoint = Endpoint(name="status", subject="taskflow.api.*.status")
    await bus.serve(Service(name="taskflow", version="0.1.0", description="Durable agent flows", endpoints=(endpoint,)), handler)
    in_hand = CALLER_BOUNDS.places
    for _ in range(2 * in_hand):
        await real.nats.client.publish("taskflow.api.kate.status", b"{}", reply="_INBOX.nobody")
    await eventually(lambda: begun == in_hand)
    assert real.server.pid is not None
    await stand_still(real.server.pid)
    goes_on.set()
    client = bus._connection.client
    await eventually(lambda: client.pending_data_size > client._max_pending_size)
    assert begun < 2 * in_hand, "the socket takes nothing more, and what it has not taken keeps its place"
    os.kill(real.server.pid, signal.SIGCONT)
    await eventually(lambda: begun == 2 * in_hand, within=30)
    await bus.stop_serving()


# --- the embedded server -------------------------------------------------------------------------------------------------------


async def test_the_sync_setting_is_read_from_the_monitoring_port(tmp_path: Path) -> None:
    for always in (True, False):
        server = EmbeddedServer(tmp_path / str(always), sync_always=always)
        await server.start()
        bus = JetStreamBus(NatsOptions(servers=(server.url,), monitor_url=server.monitor_url))
        await bus.open()
        warnings = await bus.prepare((IN, EVT), (WORKER,))
        assert bool(warnings) is not always
        assert all("sync_interval: always" in warning for warning in warnings)
        await bus.close()
        await server.stop()


async def test_an_unreachable_monitoring_port_is_no_warning(real: JetStreamRig) -> None:
    bus = JetStreamBus(NatsOptions(servers=(real.server.url,), monitor_url="http://127.0.0.1:1"))
    await bus.open()
    assert await bus.prepare((IN, EVT), (WORKER,)) == []
    await bus.close()


async def test_a_data_directory_belongs_to_one_server(tmp_path: Path) -> None:
    async with jetstream_rig(tmp_path / "one") as rig:
        with pytest.raises(ServerTaken, match=f"pid {os.getpid()}") as refused:
            await EmbeddedServer(tmp_path / "one").start()
        assert refused.value.exit_code == 75
        await rig.server.restart()
    again = EmbeddedServer(tmp_path / "one")
    await again.start()
    await again.stop()
    await again.stop()


@pytest.mark.parametrize("name", ["josé ü", "crab 🦀", 'a "quoted" one', "back\\slash", "two\nlines", "$HOME {#;\x7f", "\udcff"], ids=ascii)
async def test_any_name_of_a_folder_reaches_the_server(tmp_path: Path, name: str) -> None:
    server = EmbeddedServer(tmp_path / name)
    await server.start()
    await server.stop()
    assert (tmp_path / name / "jetstream").is_dir()


async def test_a_broken_configuration_is_said_with_the_servers_words(tmp_path: Path) -> None:
    with pytest.raises(ServerRefused, match=r"ended at once.*nonsense"):
        await EmbeddedServer(tmp_path / "s", extra_config="nonsense_setting: 1").start()


def test_a_binary_that_is_not_there_is_said_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerRefused, match=r"nats-taskflow\[dev\]"):
        find_server(str(tmp_path / "nothing"))
    own = tmp_path / "nats-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("NATS_SERVER_BIN", str(own))
    assert find_server() == own.resolve()
    monkeypatch.delenv("NATS_SERVER_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == own.resolve()
    monkeypatch.setenv("PATH", "")
    assert find_server().name.startswith("nats-server")  # the wheel's
