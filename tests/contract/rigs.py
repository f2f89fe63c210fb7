"""The two brokers behind one face, so that one suite can hold both adapters to the port's promises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker
from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.bus.port import NO_HEADERS, Ack, Bus, ConsumerSpec, Delivery, Published, Settlement, StreamSpec
from nats_taskflow.wire.headers import Headers
from tests.ports import kept_port

Json = dict[str, Any]

IN = StreamSpec(name="TASKFLOW_IN", subjects=("taskflow.cmd.*.*", "taskflow.resume"), inbound=True, max_age=7 * 86400.0)
EVT = StreamSpec(name="TASKFLOW_EVT", subjects=("taskflow.evt.>",), inbound=False, max_age=86400.0)
WORKER = ConsumerSpec(stream="TASKFLOW_IN", ack_wait=1.0)


class Agent(Protocol):
    """An agent's connection."""

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> Published: ...
    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, within: float = 5.0) -> tuple[bytes, Headers]: ...
    async def subscribe(self, pattern: str) -> asyncio.Queue[CoreMessage]: ...
    async def respond_on(
        self, pattern: str, handler: Callable[[CoreMessage], Awaitable[bytes | None]], *, echo: bool = False
    ) -> Callable[[], Awaitable[None]]: ...


class Rig(Protocol):
    """A broker, and what a test may do to it."""

    agent: Agent

    def connect(self) -> Bus: ...
    async def outage(self, bus: Bus) -> None: ...
    async def recover(self, bus: Bus) -> None: ...
    async def create_stream(self, config: Json) -> None: ...
    async def stream_config(self, name: str) -> Json: ...
    async def create_consumer(self, stream: str, config: Json) -> None: ...
    async def consumer_config(self, source: ConsumerSpec) -> Json: ...
    async def delete_consumer(self, source: ConsumerSpec) -> None: ...
    async def delete_stream(self, name: str) -> None: ...
    async def change_stream(self, name: str, change: Json) -> None: ...
    async def change_consumer(self, source: ConsumerSpec, change: Json) -> None: ...
    async def bodies(self, stream: str) -> list[bytes]: ...
    async def ask_for(self, reply: str, subject: str) -> None: ...


class MemoryRig:
    """The broker in the process."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.agent: Agent = self.broker.client()

    def connect(self) -> Bus:
        return MemoryBus(self.broker)

    async def outage(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        bus.disconnect()

    async def recover(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        bus.reconnect()

    async def create_stream(self, config: Json) -> None:
        self.broker.create_stream({"max_age": 0, "duplicate_window": 120_000_000_000, **config})

    async def stream_config(self, name: str) -> Json:
        return self.broker.streams[name].config

    async def create_consumer(self, stream: str, config: Json) -> None:
        self.broker.consumer(ConsumerSpec(stream=stream, consumer=config["name"])).config = config

    async def consumer_config(self, source: ConsumerSpec) -> Json:
        return self.broker.consumer(source).config

    async def delete_consumer(self, source: ConsumerSpec) -> None:
        del self.broker.consumers[source.stream, source.consumer]
        self.broker.tick()

    async def delete_stream(self, name: str) -> None:
        del self.broker.streams[name]

    async def change_stream(self, name: str, change: Json) -> None:
        self.broker.streams[name].config |= change

    async def change_consumer(self, source: ConsumerSpec, change: Json) -> None:
        self.broker.consumer(source).config |= change

    async def bodies(self, stream: str) -> list[bytes]:
        return [message.body for message in self.broker.streams[stream].messages.values()]

    async def ask_for(self, reply: str, subject: str) -> None:
        self.broker.publish(subject, b"", {}, reply)


class NatsAgent:
    """An agent on plain nats-py."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> Published:
        ack = await self.client.jetstream().publish(subject, body, headers=dict(headers) or None)
        return Published(stream=ack.stream, seq=ack.seq, duplicate=bool(ack.duplicate))

    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, within: float = 5.0) -> tuple[bytes, Headers]:
        try:
            msg = await self.client.request(subject, body, timeout=within, headers=dict(headers) or None)
        except NoRespondersError:
            raise ConnectionError(f"nobody answers on {subject}") from None
        return msg.data, msg.headers or NO_HEADERS

    async def subscribe(self, pattern: str) -> asyncio.Queue[CoreMessage]:
        queue: asyncio.Queue[CoreMessage] = asyncio.Queue()

        async def take(msg: Msg) -> None:
            queue.put_nowait(CoreMessage(msg.subject, msg.data, msg.headers or NO_HEADERS, msg.reply))

        await self.client.subscribe(pattern, cb=take)
        await self.client.flush()
        await self.client.flush()  # nats-py's first PING overtakes its own buffer
        return queue

    async def respond_on(
        self, pattern: str, handler: Callable[[CoreMessage], Awaitable[bytes | None]], *, echo: bool = False
    ) -> Callable[[], Awaitable[None]]:
        async def answer(msg: Msg) -> None:
            body = await handler(CoreMessage(msg.subject, msg.data, msg.headers or NO_HEADERS, msg.reply))
            if body is None or not msg.reply:
                return
            if echo:
                await msg.respond(body)
            else:
                await self.client.publish(msg.reply, body)

        async def stop() -> None:
            await subscription.unsubscribe()
            await self.client.rtt()
            await self.client.rtt()

        subscription = await self.client.subscribe(pattern, cb=answer)
        await self.client.rtt()
        await self.client.rtt()  # nats-py's first PING overtakes its own buffer
        return stop

    async def api(self, verb: str, body: Json | None = None) -> Json:
        answer = await self.client.request(f"$JS.API.{verb}", b"" if body is None else json.dumps(body).encode(), timeout=20)
        decoded: Json = json.loads(answer.data)
        return decoded


class JetStreamRig:
    """A real nats-server, started for the test."""

    def __init__(self, server: EmbeddedServer, client: Client) -> None:
        self.server = server
        self.nats = NatsAgent(client)
        self.agent: Agent = self.nats

    def connect(self) -> JetStreamBus:
        return JetStreamBus(NatsOptions(servers=(self.server.url,)), heartbeat=0.5)

    async def outage(self, bus: Bus) -> None:
        await self.server.kill()

    async def recover(self, bus: Bus) -> None:
        await self.server.start()

    async def create_stream(self, config: Json) -> None:
        assert "error" not in await self.nats.api(f"STREAM.CREATE.{config['name']}", config)

    async def stream_config(self, name: str) -> Json:
        config: Json = (await self.nats.api(f"STREAM.INFO.{name}"))["config"]
        return config

    async def create_consumer(self, stream: str, config: Json) -> None:
        answer = await self.nats.api(f"CONSUMER.CREATE.{stream}.{config['name']}", {"stream_name": stream, "config": config})
        assert "error" not in answer, answer

    async def consumer_config(self, source: ConsumerSpec) -> Json:
        config: Json = (await self.nats.api(f"CONSUMER.INFO.{source.stream}.{source.consumer}"))["config"]
        return config

    async def delete_consumer(self, source: ConsumerSpec) -> None:
        assert "error" not in await self.nats.api(f"CONSUMER.DELETE.{source.stream}.{source.consumer}")

    async def delete_stream(self, name: str) -> None:
        assert "error" not in await self.nats.api(f"STREAM.DELETE.{name}")

    async def change_stream(self, name: str, change: Json) -> None:
        config = (await self.nats.api(f"STREAM.INFO.{name}"))["config"]
        assert "error" not in await self.nats.api(f"STREAM.UPDATE.{name}", config | change)

    async def change_consumer(self, source: ConsumerSpec, change: Json) -> None:
        config = (await self.nats.api(f"CONSUMER.INFO.{source.stream}.{source.consumer}"))["config"]
        body = {"stream_name": source.stream, "config": config | change, "action": "update"}
        assert "error" not in await self.nats.api(f"CONSUMER.CREATE.{source.stream}.{source.consumer}", body)

    async def bodies(self, stream: str) -> list[bytes]:
        js = self.nats.client.jetstream()
        state = (await self.nats.api(f"STREAM.INFO.{stream}"))["state"]
        return [(await js.get_msg(stream, seq)).data or b"" for seq in range(1, state["last_seq"] + 1)]

    async def ask_for(self, reply: str, subject: str) -> None:
        await self.nats.client.publish(subject, b"", reply=reply)


@asynccontextmanager
async def memory_rig(_: Path) -> AsyncIterator[MemoryRig]:
    """Make a broker in the process."""
    yield MemoryRig()


@asynccontextmanager
async def jetstream_rig(data: Path) -> AsyncIterator[JetStreamRig]:
    """Start a server and an agent's connection to it."""
    server = EmbeddedServer(data, kept_port(), sync_always=False)
    await server.start()
    client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=_quiet)
    try:
        yield JetStreamRig(server, client)
    finally:
        await client.close()
        await server.stop()


@asynccontextmanager
async def pulling(
    bus: Bus, source: ConsumerSpec = WORKER, *, settle: Settlement | None = None, room: Callable[[], int] = lambda: 1000
) -> AsyncIterator[list[Delivery]]:
    """Pull in the background and collect what comes; `settle`: answer each delivery with this."""
    got: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        got.append(delivery)
        if settle is not None:
            bus.settle(delivery, settle)

    task = asyncio.create_task(bus.pull(source, take, room))
    try:
        yield got
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


async def _quiet(error: Exception) -> None:
    """Ignore the agent's connection errors: the tests kill its server."""


ACK = Ack()
