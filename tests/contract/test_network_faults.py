"""What a network can do to the connection, at the adapter's own level: the whole worker goes through the same in tests/faults."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.bus.port import ConsumerSpec, Delivery, OutgoingMessage, PublishFailed
from tests.contract.rigs import EVT, IN, WORKER
from tests.eventually import eventually
from tests.faults.proxy import DOWN, UP, Cut, Proxy, Way
from tests.ports import kept_port

pytestmark = [pytest.mark.e2e]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    made = EmbeddedServer(tmp_path, kept_port())
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[Proxy]:
    async with Proxy(lambda: server.url) as made:
        yield made


def event(number: int, size: int = 10) -> OutgoingMessage:
    return OutgoingMessage(subject="taskflow.evt.kate.f.created", body=b"x" * size, msg_id=f"e-{number}")


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "way, after",
    [*((DOWN, k) for k in (0, 1, 4, 5, 6, 100)), *((UP, k) for k in (0, 4, 8, 60))],
)
async def test_a_handshake_that_is_cut_is_tried_again(proxy: Proxy, way: Way, after: int, *, reset: bool) -> None:
    bus = JetStreamBus(NatsOptions(servers=(proxy.url,)))
    await bus.open()
    proxy.cut_next(Cut(way=way, after=after, reset=reset))
    proxy.drop()
    await eventually(lambda: proxy.cuts == 1 and bus.connected and proxy.connections >= 3)
    await bus.close()


async def test_a_path_that_ends_in_the_middle_of_a_burst_is_left_for_another(proxy: Proxy) -> None:
    bus = JetStreamBus(NatsOptions(servers=(proxy.url,), ping_interval=0.5))
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    proxy.strand()  # nobody reads what we write, and nobody says so
    sent = [bus.publish(event(number, 100_000)) for number in range(200)]  # more than every buffer on the way holds
    answers = await asyncio.gather(*sent, return_exceptions=True)
    assert all(isinstance(one, PublishFailed) and not one.refused for one in answers)
    await eventually(lambda: proxy.connections >= 2 and bus.connected)
    assert await eventually(partial(_stored, bus)) == 1, "of the burst nothing comes later"
    await asyncio.wait_for(bus.close(), 15)


async def _stored(bus: JetStreamBus) -> int | None:
    """Return where the first event of the burst is stored; None where it is not: pings this short find a busy machine dead again."""
    with contextlib.suppress(PublishFailed):
        return (await bus.publish(event(0, 100_000))).seq
    return None


async def test_what_was_delivered_into_a_connection_that_died_comes_again_with_the_next_one(server: EmbeddedServer, proxy: Proxy) -> None:
    patient = ConsumerSpec(stream="TASKFLOW_IN", ack_wait=60.0)
    bus, agent = JetStreamBus(NatsOptions(servers=(proxy.url,))), JetStreamBus(NatsOptions(servers=(server.url,)))
    await bus.open()
    await agent.open()
    await bus.prepare((IN, EVT), (patient,))
    got: list[Delivery] = []
    pull = asyncio.create_task(bus.pull(patient, got.append, lambda: 10))
    await eventually(lambda: bus.pull_requests)
    await bus.flush()
    before = proxy.connections
    proxy.swallowed.add(DOWN)
    await agent.publish(OutgoingMessage(subject="taskflow.cmd.kate.start", body=b"1", msg_id="1"))

    async def delivered() -> bool:
        return (await agent.backlog(patient)).delivered == 1

    await eventually(delivered)
    proxy.drop()
    proxy.heal()
    await eventually(lambda: got, within=10)
    assert proxy.connections > before
    pull.cancel()
    await asyncio.wait({pull})
    await bus.close()
    await agent.close()
