"""A worker of today divides the consumer of an older one, which took commands and replies alike: in place, with messages pending."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from nats_taskflow import wiring
from nats_taskflow.bus import claims
from nats_taskflow.bus.filters import filters_in
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.nats.consumers import Consumers
from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec, StreamSpec
from nats_taskflow.config import Config
from nats_taskflow.errors import ConsumerTaken, TopologyRefused
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.testing.worker_run import WorkerRun
from nats_taskflow.wire.subjects import Subjects
from nats_taskflow.wiring import wall_clock
from tests.contract.rigs import JetStreamRig, jetstream_rig
from tests.eventually import eventually
from tests.ports import kept_port
from tests.service.line import TOPIC, Gate

WORKER, REPLIES = ConsumerSpec(stream="TASKFLOW_IN"), ConsumerSpec(stream="TASKFLOW_IN", consumer="replies")


def of_before(*settings: object) -> tuple[tuple[StreamSpec, ...], tuple[ConsumerSpec, ...]]:
    """The streams and the one consumer of the previous release."""
    streams, _ = topology(*settings)  # type: ignore[arg-type]
    return tuple(msgspec.structs.replace(stream, max_bytes=-1) for stream in streams), (msgspec.structs.replace(WORKER, ends_waits=True),)


class Site:
    """One database and one real broker, on which workers of both releases live."""

    def __init__(self, real: JetStreamRig, path: Path) -> None:
        self.real = real
        self.path = str(path)
        self.store: SqliteFlowStore
        self.life: WorkerRun

    async def start(self) -> None:
        self.store = await SqliteFlowStore.open(self.path)
        bus = self.real.connect()
        self.life = WorkerRun(Config(), self.store, bus, clock=wall_clock)
        await self.life.begin()

    async def start_older(self) -> None:
        with patch.object(wiring, "topology", of_before):
            await self.start()

    async def stop(self) -> None:
        self.life.ask_to_stop()
        await self.life.ended()
        await self.life.services.bus.close()
        await self.store.close()

    async def kill(self) -> None:
        """Cut it off from the broker and from its database, then let it fall."""
        await self.life.services.bus.close()
        await self.life.cut()
        await self.abandon()

    async def abandon(self) -> None:
        """Leave the database as a kill does."""
        for connection in (self.store._reader, self.store._writer):
            assert connection is not None
            await connection.close()
        assert self.store._lock is not None
        self.store._lock.release()

    async def command(self, verb: str, command_id: str, **fields: object) -> None:
        await self.real.agent.publish(f"taskflow.cmd.kate.{verb}", msgspec.json.encode(fields), {"Nats-Msg-Id": command_id})

    async def reply(self, correlation_id: str) -> None:
        body = msgspec.json.encode({"correlation_id": correlation_id, "payload": {"of": correlation_id}})
        await self.real.agent.publish(TOPIC, body, {"Nats-Msg-Id": f"reply-{correlation_id}"})

    async def parked(self, name: str) -> None:
        """Ask for a flow that waits for the reply `name`."""
        flow_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        await self.command("start", f"start-{name}", controller_id="k", goal=name, flow_id=flow_id)
        wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": name}
        await self.command("wait", f"wait-{name}", flow_id=flow_id, wait_condition=wait)

    async def resumed(self, name: str) -> bool:
        found = await self.store.get(str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
        return found is not None and found.status == "running" and "resume_event" in found.state_json

    async def taken(self) -> int:
        """How many messages have an outcome."""
        return sum(value for name, value in (await self.store.counts()).items() if name.startswith("inbox."))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with jetstream_rig(tmp_path / "nats") as real:
        yield Site(real, tmp_path / "flows.db")


NAMES = [f"r-{n}" for n in range(20)]


async def half_done(site: Site) -> int:
    """Leave a stream with everything in it: decided, decided but not acknowledged, in flight, pending, early. Returns how many it has."""
    await site.start_older()
    for name in NAMES[:5]:
        await site.parked(name)
    await site.reply(NAMES[0])
    await eventually(lambda: site.resumed(NAMES[0]))
    gate = Gate()
    with gate.closed():
        for name in NAMES[5:10]:
            await site.parked(name)
        for name in NAMES[1:10:2]:
            await site.reply(name)
        await gate.reached.wait()
        await eventually(lambda: site.life.services.consumers[0].in_hand == 15)
        gate.drop()
        await site.kill()
    for name in NAMES[10:15]:
        await site.reply(name)  # nobody waits for it yet
    for name in NAMES[10:]:
        await site.parked(name)
    for name in (*NAMES[2:10:2], *NAMES[15:]):
        await site.reply(name)
    return 3 * len(NAMES)


async def test_nothing_is_lost_or_decided_twice_when_an_older_consumer_is_divided(site: Site) -> None:
    """Issue 14: with messages pending and others in flight."""
    sent = await half_done(site)
    await site.start()
    for name in NAMES:
        await eventually(lambda: site.resumed(name))  # noqa: B023  awaited within the round
    await eventually(site.taken)
    counts = await site.store.counts()
    assert await site.taken() == sent, counts
    assert counts["inbox.applied"] == 2 * len(NAMES)
    assert counts["inbox.resumed"] == len(NAMES)
    assert filters_in(await site.real.consumer_config(WORKER)) == {"taskflow.cmd.*.*"}
    assert TOPIC in filters_in(await site.real.consumer_config(REPLIES))
    bus = site.life.services.bus
    for source in (WORKER, REPLIES):
        assert (await bus.backlog(source)).pending == 0
        assert (await site.real.consumer_config(source))["metadata"]["taskflow-database"] == site.store.identity
    assert await bus.inspect() == []
    await site.stop()


async def test_a_start_that_was_killed_halfway_through_the_division_is_carried_on(site: Site) -> None:
    sent = await half_done(site)
    with patch.object(Consumers, "_update", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        await site.start()
    await site.abandon()
    assert not filters_in(await site.real.consumer_config(WORKER))
    await site.start()
    for name in NAMES:
        await eventually(lambda: site.resumed(name))  # noqa: B023  awaited within the round
    await eventually(site.taken)
    assert await site.taken() == sent
    await site.stop()


MAY_NOT_MAKE = """
authorization { users: [
  { user: boss, password: secret }
  { user: worker, password: secret, permissions: { publish: { deny: ["$JS.API.CONSUMER.CREATE.>"] } } }
] }
"""


async def test_a_worker_that_may_not_divide_the_consumer_says_what_to_run_and_changes_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "nats", kept_port(), sync_always=False, extra_config=MAY_NOT_MAKE)
    await server.start()
    boss, worker = (JetStreamBus(NatsOptions(servers=(server.url,), user=user, password="secret")) for user in ("boss", "worker"))
    settings = Config(), Subjects(), reply_bindings(Config(), Subjects())
    await boss.open()
    await worker.open()
    await boss.prepare(*of_before(*settings), holder=ClaimHolder(database="a1", host="h", store="/a1"))
    with pytest.raises(TopologyRefused, match="taskflow provision"):
        await worker.prepare(*topology(*settings))
    await boss.prepare(*topology(*settings))  # what `taskflow provision` does, without naming a database
    mine, others = (ClaimHolder(database=name, host="h", store=f"/{name}") for name in ("a1", "b2"))
    await worker.prepare(*topology(*settings), holder=mine)
    with pytest.raises(ConsumerTaken, match="consumer worker"):
        await worker.prepare(*topology(*settings), holder=others)
    _, replies = topology(*settings)[1]
    assert claims.holder_in((await boss._topology.consumer_info(replies))["config"]) == mine, "it serves whom the older one served"
    await boss.close()
    await worker.close()
    await server.stop()
