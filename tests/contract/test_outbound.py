"""How messages get onto the wire and off it past nats-py's queues: in few pieces, bounded, in order; here its private names are held."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.direct_delivery import DirectDeliveryClient
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.port import PublishFailed
from tests.contract.rigs import ACK, EVT, IN, WORKER, JetStreamRig, pulling
from tests.eventually import eventually
from tests.standing import stand_still


@pytest.fixture
async def bus(real: JetStreamRig) -> AsyncIterator[JetStreamBus]:
    """An open, prepared connection."""
    made = real.connect()
    await made.open()
    await made.prepare((IN, EVT), (WORKER,))
    yield made
    await made.close()


async def test_what_queued_meanwhile_is_written_in_one_piece_and_in_order(real: JetStreamRig, bus: JetStreamBus) -> None:
    heard = await real.agent.subscribe("plain.>")
    pieces = spied(bus._connection.client)
    for number in range(1000):
        bus._connection.outbound.put(Frame("plain.text", b"%d" % number))
    await eventually(lambda: heard.qsize() == 1000)
    assert [int(heard.get_nowait().body) for _ in range(1000)] == list(range(1000))
    assert len(pieces) == 4, "a call of nats-py's for each 256 frames"


async def test_a_frame_that_cannot_be_written_stops_no_other(real: JetStreamRig, bus: JetStreamBus) -> None:
    heard = await real.agent.subscribe("plain.>")
    failing = asyncio.get_running_loop().create_future()
    bus._connection.outbound.put(Frame("plain.text", b"", headers={"no name": "1"}, waiting=failing))
    bus._connection.outbound.put(Frame("plain.text", b"good"))
    with pytest.raises(PublishFailed, match="not sent"):
        await asyncio.wait_for(failing, 5)
    await eventually(lambda: heard.qsize() == 1)


@pytest.mark.parametrize("trouble", [MemoryError(), asyncio.CancelledError(), RuntimeError("the handler is closed")])
@pytest.mark.parametrize("where", ["_piece", "_write"])
async def test_whatever_goes_wrong_while_it_writes_what_comes_next_is_written(
    real: JetStreamRig, bus: JetStreamBus, monkeypatch: pytest.MonkeyPatch, where: str, trouble: BaseException
) -> None:
    heard = await real.agent.subscribe("plain.>")
    outbound = bus._connection.outbound
    with monkeypatch.context() as patched:
        failing = Mock(side_effect=trouble)
        patched.setattr(outbound, where, failing)
        outbound.put(Frame("plain.text", b"not now"))
        await eventually(lambda: failing.called)
    outbound.put(Frame("plain.text", b"good"))
    await eventually(lambda: b"good" in [heard.get_nowait().body for _ in range(heard.qsize())])


async def test_a_peer_that_reads_nothing_holds_the_writer_back_and_gets_everything_later(real: JetStreamRig, bus: JetStreamBus) -> None:
    heard = await real.agent.subscribe("plain.>")
    client, outbound = bus._connection.client, bus._connection.outbound
    assert real.server.pid is not None
    await stand_still(real.server.pid)
    for number in range(400):
        outbound.put(Frame("plain.text", b"%-100000d" % number))  # 40 MB: more than the socket's buffers take
    await eventually(lambda: client.pending_data_size > client._max_pending_size)
    assert client.pending_data_size < client._max_pending_size + 300_000
    assert outbound._frames
    os.kill(real.server.pid, signal.SIGCONT)
    await eventually(lambda: heard.qsize() == 400, within=30)
    assert [int(heard.get_nowait().body) for _ in range(400)] == list(range(400))


async def test_who_waits_for_what_is_left_to_write_goes_on_when_the_socket_has_taken_it(real: JetStreamRig, bus: JetStreamBus) -> None:
    client, outbound = bus._connection.client, bus._connection.outbound
    assert real.server.pid is not None
    await stand_still(real.server.pid)
    for number in range(200):
        outbound.put(Frame("plain.text", b"%-100000d" % number))
    await eventually(lambda: client.pending_data_size > client._max_pending_size)
    waiting = [asyncio.create_task(outbound.wait_for_room()) for _ in range(3)]
    os.kill(real.server.pid, signal.SIGCONT)
    await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert not outbound._frames
    assert client.pending_data_size <= 64 * 1024


async def test_what_waits_for_a_reconnect_is_bounded_by_the_clients_buffer(real: JetStreamRig, bus: JetStreamBus) -> None:
    client, outbound = bus._connection.client, bus._connection.outbound
    await real.server.kill()
    await eventually(lambda: not client.is_connected)
    outbound.put(Frame("taskflow.evt.kept", b"-1"))
    for number in range(40):
        outbound.put(Frame("taskflow.evt.kept", b"%-100000d" % number, keep=True))
    await outbound.drain()
    assert client._max_pending_size - 110_000 < client.pending_data_size <= client._max_pending_size
    held = client._max_pending_size // 100_100
    await real.server.start()

    async def stored() -> bool:
        return [int(body) for body in await real.bodies("TASKFLOW_EVT")] == [*range(held)]

    await real.nats.client.flush(timeout=10)
    await eventually(stored)


async def test_our_own_messages_take_no_queue_and_no_task_of_nats_py(real: JetStreamRig, bus: JetStreamBus) -> None:
    client = bus._connection.client
    async with pulling(bus, settle=ACK) as got:
        await real.agent.publish("taskflow.cmd.ana.start", b"1", {"Nats-Msg-Id": "c-1"})
        await eventually(lambda: got)
        direct = [client._subs[sid] for sid in client._direct]
        assert len(direct) == 2, "deliveries and acknowledgements"
        assert [(one._wait_for_msgs_task, one.pending_msgs) for one in direct] == [(None, 0), (None, 0)]
    assert len(client._direct) == 1, "the pull's is forgotten with it"


async def test_a_message_that_trips_its_taker_does_not_end_the_reading(real: JetStreamRig, bus: JetStreamBus) -> None:
    client, got = bus._connection.client, []

    def trip(_subject: bytes, _reply: bytes, body: bytes, _headers: bytes | None) -> None:
        got.append(body)
        if body == b"bad":
            raise ArithmeticError

    await client.subscribe_directly("plain.text", trip)
    await bus._connection.flush()
    with capture_logs() as logs:
        for body in (b"bad", b"good"):
            await real.nats.client.publish("plain.text", body)
        await eventually(lambda: got == [b"bad", b"good"])
    assert [line["event"] for line in logs] == ["bus.take_failed"]


def spied(client: DirectDeliveryClient) -> list[bytes]:
    """Keep what the client is handed."""
    pieces: list[bytes] = []
    send = client._send_command

    async def keep(cmd: bytes, priority: bool = False) -> None:
        pieces.append(cmd)
        await send(cmd, priority)

    client._send_command = keep  # type: ignore[method-assign]  # what nats-py's own `publish` calls
    return pieces
