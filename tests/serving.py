"""Run a whole worker on the memory bus and a virtual clock: streams, consumers, api, dispatcher; `pump` lets what is in flight arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker, MemoryClient
from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.config import Config
from nats_taskflow.doors.api import Api
from nats_taskflow.doors.flow_manager import FlowManager
from nats_taskflow.doors.micro_service import MicroService
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.id_mint import IdMint
from nats_taskflow.engine.policy import policy_of
from nats_taskflow.engine.reader import make_reader
from nats_taskflow.flow.model import Flow
from nats_taskflow.services.consumer import Consumer
from nats_taskflow.services.dispatcher import Dispatcher
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.wire.subjects import Subjects
from nats_taskflow.wiring import admin_queries, admin_service
from tests.eventually import eventually
from tests.running import Running, VirtualClock

Json = dict[str, Any]


class Refused(Exception):
    """What the worker answered instead of doing it."""

    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.code: str = error["code"]
        self.details: Json = error["details"]


class Served:
    """A worker and an agent's connection to it. Nothing is sent to delegates until `dispatcher.dispatch`, which tests call."""

    def __init__(self, run: Running, bus: MemoryBus, dispatcher: Dispatcher, watched: list[tuple[str, str]]) -> None:
        self.run = run
        self.bus = bus
        self.client: MemoryClient = bus.client()
        self.dispatcher = dispatcher
        self.watched = watched

    async def ask(self, verb: str, *, agent: str = "kate", sent_with: dict[str, str] | None = None, **fields: Any) -> Json:
        """Ask on `api`, `sent_with` NATS headers; raises `Refused`."""
        body, _ = await self.client.request(f"taskflow.api.{agent}.{verb}", msgspec.json.encode(fields), sent_with or {})
        told: Json = msgspec.json.decode(body)
        if not told["ok"]:
            raise Refused(told["error"])
        return told

    async def started(self, *, agent: str = "kate", sent_with: dict[str, str] | None = None, **fields: Any) -> str:
        """Start a flow, return its id."""
        told = await self.ask("start", agent=agent, sent_with=sent_with, controller_id="k", goal="g", **fields)
        flow_id: str = told["flow"]["id"]
        return flow_id

    async def flow(self, flow_id: str) -> Flow:
        """Return the flow."""
        flow = await self.run.manager.get(flow_id)
        assert flow is not None
        return flow

    async def respond(self, subject: str, answer: bytes | Json | None, headers: dict[str, str] | None = None) -> list[CoreMessage]:
        """Play a delegate that answers everything alike (None: never); returns what it will have heard."""
        heard: list[CoreMessage] = []
        body = answer if answer is None or isinstance(answer, bytes) else msgspec.json.encode(answer)

        async def handle(message: CoreMessage) -> bytes | None:
            heard.append(message)
            if body is not None and headers is not None:
                await self.client.respond(message, body, headers)
                return None
            return body

        await self.client.respond_on(subject, handle)
        return heard

    async def dispatch(self) -> int:
        """Send what is due to delegates, and let their answers arrive."""
        sent = await self.dispatcher.dispatch()
        await self.pump()
        return sent

    async def pump(self) -> None:
        """Return when everything that is in the streams has been taken in."""
        await asyncio.sleep(0)
        await eventually(self._idle)

    def _idle(self) -> bool:
        """Tell whether nothing is on its way."""
        backlogs = [consumer.backlog() for consumer in self.bus.broker.consumers.values()]
        rest = not self.client._answers and not self.run.engine.queued
        return rest and all(b.pending == 0 and b.floor == b.delivered for b in backlogs)


@contextlib.asynccontextmanager
async def serving(
    path: str = ":memory:",
    *,
    config: Config | None = None,
    broker: MemoryBroker | None = None,
    clock: VirtualClock | None = None,
    **policy: Any,
) -> AsyncIterator[Served]:
    """Run a worker. With the same path and broker another one goes on where this one ended, as after a crash: nothing is drained."""
    config, clock = config or Config(), clock or VirtualClock()
    broker = broker or MemoryBroker(clock=clock)
    subjects, mint = Subjects(config.subjects.prefix), IdMint()
    bindings = reply_bindings(config, subjects)
    streams, sources = topology(config, subjects, bindings)
    bus = MemoryBus(broker)
    await bus.open()
    await bus.prepare(streams, sources)
    store = await SqliteFlowStore.open(path)
    engine = Engine(store, clock=clock, policy=msgspec.structs.replace(policy_of(config, bindings), **policy))
    manager = FlowManager(engine)
    watched: list[tuple[str, str]] = []

    def watch(verb: str, outcome: str) -> None:
        watched.append((verb, outcome))

    read = make_reader(subjects, bindings, mint)
    consumers = [Consumer(bus, engine, source, read=read, count=watch, recovered=store.recovered) for source in sources]
    served = Served(Running(store, engine, manager, WaitEngine(engine), clock), bus, Dispatcher(bus, engine), watched)
    committing = asyncio.create_task(engine.run())
    for consumer in consumers:
        await consumer.recover()
    pulls = [asyncio.create_task(consumer.run()) for consumer in consumers]
    queries = admin_queries(store, bus, subjects, engine, tuple)
    operators = admin_service(queries, store, bus, subjects, bindings, engine, lambda _done, _failed: None)
    requests = MicroService(Api(engine, subjects, mint, queries.explain_to_agent, watch=watch), operators, subjects)
    await bus.serve(requests.service("0.0.0"), requests.handle)
    try:
        yield served
    finally:
        for pull in pulls:
            pull.cancel()
        await asyncio.wait(pulls)
        engine.close()
        await committing
        await bus.close()
        await store.close()
