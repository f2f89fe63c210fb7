"""What a stream may hold: one that is full leaves the others their room, and an operator can shorten it in an emergency."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.js.errors import APIError

from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.nats.server import EmbeddedServer, quote
from nats_taskflow.bus.port import ConsumerSpec, OutgoingMessage, StreamSpec
from nats_taskflow.config import Config, load
from nats_taskflow.errors import TopologyRefused
from nats_taskflow.units import Duration
from nats_taskflow.wire.limits import MAX_BYTES
from nats_taskflow.wire.subjects import Subjects
from tests.contract.rigs import Json, NatsAgent
from tests.eventually import eventually
from tests.ports import kept_port

MIB = 1 << 20
CMD, EVENT, LETTER = "taskflow.cmd.mallory.start", "taskflow.evt.kate.f.started", "taskflow.dlq.malformed"
LIMITED = "accounts {{ A: {{ jetstream: {{ max_file: {size} }}, users: [{{ user: a, password: a{rights} }}] }} }}\nno_auth_user: a"


def needs(config: Config | None = None) -> tuple[tuple[StreamSpec, ...], tuple[ConsumerSpec, ...]]:
    chosen = config or Config()
    return topology(chosen, Subjects(), reply_bindings(chosen, Subjects()))


class Broker:
    """A server with little room, the worker's connection to it, and an agent's."""

    def __init__(self, bus: JetStreamBus, agent: NatsAgent) -> None:
        self.bus = bus
        self.agent = agent

    async def config(self, stream: str) -> Json:
        found: Json = (await self.agent.api(f"STREAM.INFO.{stream}"))["config"]
        return found

    async def sizes(self) -> list[int]:
        return [(await self.config(stream.name))["max_bytes"] for stream in needs()[0]]

    async def fill(self, body: bytes = b"x" * 250_000) -> int:
        """Publish commands until the broker refuses them; returns how many it took."""
        with contextlib.suppress(APIError):
            for _ in range(1000):
                await self.agent.publish(CMD, body)
        with pytest.raises(APIError) as full:
            await self.agent.publish(CMD, body)
        assert full.value.err_code == 10077
        taken: int = (await self.agent.api("STREAM.INFO.TASKFLOW_IN"))["state"]["messages"]
        return taken


Small = Callable[[str], AbstractAsyncContextManager[Broker]]


@pytest.fixture
async def small(tmp_path: Path) -> Small:
    @asynccontextmanager
    async def started(extra: str) -> AsyncIterator[Broker]:
        server = EmbeddedServer(
            tmp_path / "nats", kept_port(), sync_always=False, extra_config=extra.replace("STORE", quote(tmp_path / "js"))
        )
        await server.start()
        bus, client = JetStreamBus(NatsOptions(servers=(server.url,))), await nats.connect(server.url)
        await bus.open()
        try:
            yield Broker(bus, NatsAgent(client))
        finally:
            await bus.close()
            await client.close()
            await server.stop()

    return started


SMALL_STORE = "jetstream { store_dir: STORE, max_file_store: 60MB }"


async def test_a_full_inbound_stream_leaves_events_and_dead_letters_their_room(small: Small) -> None:
    """Issue 14, B6: the store was full in 0.4 s, and nothing went out any more."""
    async with small(SMALL_STORE) as broker:
        (warning,) = [said for said in await broker.bus.prepare(*needs()) if "max_file_store" in said]
        assert f"{32 * MIB:,} bytes" in warning, "too small a grant is said"
        assert await broker.sizes() == [8 * MIB, 8 * MIB, MIB]
        assert await broker.fill() == 33
        for subject in (EVENT, LETTER):
            await broker.bus.publish(OutgoingMessage(subject=subject, body=b"{}", msg_id=subject))


async def test_a_message_that_no_body_within_the_limits_needs_is_not_stored(small: Small) -> None:
    async with small("") as broker:
        await broker.bus.prepare(*needs())
        with pytest.raises(APIError) as refused:
            await broker.agent.publish(CMD, b"x" * 900_000)
        assert refused.value.err_code == 10054
        await broker.agent.publish(CMD, b"x" * MAX_BYTES, {"Nats-Msg-Id": "m" * 200, "traceparent": "t" * 60})


async def test_the_share_is_of_what_the_account_grants(small: Small) -> None:
    async with small(LIMITED.format(size="64MB", rights="")) as broker:
        assert any("grants 67,108,864 bytes" in said for said in await broker.bus.prepare(*needs()))
        assert await broker.sizes() == [16 * MIB, 16 * MIB, 2 * MIB]
        assert await broker.bus.prepare(*needs()) == [], "it is shared out once"


async def test_a_broker_without_room_is_refused_with_what_to_do(small: Small) -> None:
    async with small(SMALL_STORE.replace("60MB", "1MB")) as broker:
        with pytest.raises(TopologyRefused, match="max_file_store"):
            await broker.bus.prepare(*needs())


async def test_configured_sizes_are_taken_as_they_are(small: Small) -> None:
    sizes = {
        "TASKFLOW_STREAM_MAX_BYTES": "20MiB",
        "TASKFLOW_STREAM_EVENT_MAX_BYTES": "10MiB",
        "TASKFLOW_STREAM_DEAD_LETTER_MAX_BYTES": "5MiB",
    }
    async with small(SMALL_STORE) as broker:
        assert await broker.bus.prepare(*needs(load(environ=sizes))) == []
        assert await broker.sizes() == [20 * MIB, 10 * MIB, 5 * MIB]


async def older(broker: Broker) -> None:
    """Make the streams as the previous release did: without limits of size."""
    for stream in needs()[0]:
        config = {"name": stream.name, "subjects": list(stream.subjects), "max_age": int(stream.max_age * 1_000_000_000)}
        inbound = {"discard": "new", "deny_delete": True, "deny_purge": True} if stream.inbound else {"discard": "old"}
        assert "error" not in await broker.agent.api(f"STREAM.CREATE.{stream.name}", config | inbound | {"storage": "file"})


async def test_the_streams_of_an_older_worker_get_their_limits_in_place_and_keep_what_they_have(small: Small) -> None:
    async with small(SMALL_STORE) as broker:
        await older(broker)
        await broker.agent.publish(CMD, b"{}")
        await broker.bus.prepare(*needs())
        assert await broker.sizes() == [8 * MIB, 8 * MIB, MIB]
        assert (await broker.config("TASKFLOW_IN"))["max_msg_size"] > MAX_BYTES
        assert (await broker.agent.api("STREAM.INFO.TASKFLOW_IN"))["state"]["messages"] == 1


async def test_a_stream_that_holds_more_than_its_share_is_not_made_to_refuse_everything(small: Small) -> None:
    async with small(SMALL_STORE) as broker:
        await older(broker)
        for _ in range(30):
            await broker.agent.publish(CMD, b"x" * 250_000)
        assert any("stream.max_bytes" in said for said in await broker.bus.prepare(*needs()))
        assert await broker.sizes() == [-1, 8 * MIB, MIB]
        await broker.agent.publish(CMD, b"{}")


MAY_NOT = ', permissions: { publish: { deny: ["$JS.API.STREAM.UPDATE.>"] } }'


async def test_a_worker_that_may_not_limit_a_stream_says_what_to_run_and_goes_on(small: Small) -> None:
    async with small(LIMITED.format(size="64MB", rights=MAY_NOT)) as broker:
        await older(broker)
        said = await broker.bus.prepare(*needs())
        assert sum("taskflow provision" in one and "deny_" not in one for one in said) == 3
        assert [one.split(":")[0] for one in said if "deny_purge" in one] == ["stream TASKFLOW_EVT", "stream TASKFLOW_DLQ"]


async def test_an_operator_can_shorten_what_the_stream_keeps_and_lengthen_it_again(small: Small) -> None:
    """docs/monitoring.md: the emergency in which somebody fills the stream."""
    async with small(SMALL_STORE) as broker:
        await broker.bus.prepare(*needs())
        await broker.fill()
        short, long = (Config(stream=Config().stream.__class__(max_age=Duration(us))) for us in (60_000_000, 7 * 86400 * 1_000_000))
        streams, sources = needs(short)
        await broker.bus.prepare(tuple(_brief(stream) for stream in streams), sources, set_limits=True)
        assert (await broker.config("TASKFLOW_IN"))["duplicate_window"] == 1_000_000_000

        async def emptied() -> bool:
            return bool((await broker.agent.api("STREAM.INFO.TASKFLOW_IN"))["state"]["messages"] == 0)

        await eventually(emptied)
        await broker.agent.publish(CMD, b"{}")
        await broker.bus.prepare(*needs(long), set_limits=True)
        assert (await broker.config("TASKFLOW_IN"))["max_age"] == 7 * 86400 * 1_000_000_000
        assert await broker.sizes() == [8 * MIB, 8 * MIB, MIB]


def _brief(stream: StreamSpec) -> StreamSpec:
    """The setting takes a minute at least; nobody waits for it here."""
    return StreamSpec(name=stream.name, subjects=stream.subjects, inbound=stream.inbound, max_age=1.0, share=stream.share)
