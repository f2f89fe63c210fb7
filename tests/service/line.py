"""The test kit's worker on a database that the test names, a file mostly, and on a bus that remembers what it was asked.

Time is real here but for the clock that decides: these tests look at what is between two moments, which the kit's own world jumps over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from nats_taskflow.bus.memory.bus import MemoryBroker, MemoryBus, StoredMessage
from nats_taskflow.bus.port import Delivery, OutgoingMessage, Published, PublishFailed, Settlement
from nats_taskflow.config import Config
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.testing.worker_run import WorkerRun
from nats_taskflow.units import Duration
from nats_taskflow.wire.subjects import Subjects
from nats_taskflow.wiring import Services
from tests.eventually import eventually
from tests.running import VirtualClock

TOPIC = "agent.delegate.reply"


class SpyingBus(MemoryBus):
    """Remembers what was asked to be published, stored or not, and how deliveries were settled; refuses events of the flow `refuse`.

    `batches` tells how many messages each batch had.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.asked: list[OutgoingMessage] = []
        self.settled: list[Settlement] = []
        self.batches: list[int] = []
        self.refuse = ""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        self.asked.append(message)
        return self._refused([message]) or super().publish(message)

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        self.asked += messages
        self.batches.append(len(messages))
        return self._refused(messages) or super().publish_all(messages)

    def _refused(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published] | None:
        if not self.refuse or not any(self.refuse in message.subject for message in messages):
            return None
        refused: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        refused.set_exception(PublishFailed("refused for its own sake", refused=True))
        return refused

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        self.settled.append(settlement)
        super().settle(delivery, settlement)


class Line:
    """One worker after another on one database and one broker; `agent` is somebody else's connection."""

    def __init__(self, path: Path | str, config: Config | None = None) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(clock=self.clock)
        self.agent = self.broker.client()
        self.config = config or Config()
        self.path = str(path)
        self.subjects = Subjects()
        self.bus: SpyingBus
        self.store: SqliteFlowStore
        self._life: WorkerRun
        self._ids = itertools.count(1)

    async def start(self, *, startup_drain: float = 5.0, adopt: bool = False) -> None:
        self.store = await SqliteFlowStore.open(self.path)
        self.bus = SpyingBus(self.broker)
        engine = msgspec.structs.replace(self.config.engine, startup_drain=Duration(startup_drain * 1_000_000))
        self._life = WorkerRun(msgspec.structs.replace(self.config, engine=engine), self.store, self.bus, clock=self.clock)
        await self._life.begin(adopt=adopt)

    @property
    def services(self) -> Services:
        return self._life.services

    async def stop(self) -> None:
        """SIGTERM."""
        self._life.ask_to_stop()
        await self.end()

    async def end(self) -> None:
        """Wait for the worker to end by itself, and close what it had open."""
        try:
            await self._life.ended()
        finally:
            await self.bus.close()
            await self.store.close()

    async def kill(self) -> None:
        """SIGKILL: nothing is said to the broker or the database any more, and nothing is closed."""
        self.bus.disconnect()
        await self._life.cut()
        await self.bus.close()
        for connection in self.store.connections:
            await connection.close()
        assert self.store._lock is not None
        self.store._lock.release()

    @property
    def failed(self) -> bool:
        """Whether the worker has ended by itself."""
        return self._life.over

    def advance(self, **parts: float) -> None:
        """Move the clock; the broker looks for redeliveries, and the wait engine, which sleeps by the real one, for what is due."""
        self.clock.advance(**parts)
        self.broker.tick()
        if (life := getattr(self, "_life", None)) is not None:
            life.services.waits._woken.set()

    async def command(self, verb: str, command_id: str | None = None, headers: dict[str, str] | None = None, **fields: Any) -> str:
        """Publish a durable command; returns its id."""
        name = command_id or f"cmd-{next(self._ids)}"
        await self.agent.publish(f"taskflow.cmd.kate.{verb}", msgspec.json.encode(fields), {"Nats-Msg-Id": name, **(headers or {})})
        return name

    async def outcome(self, command_id: str) -> dict[str, Any]:
        """Return the stored outcome of a command, once there is one."""
        row = await eventually(lambda: self.store.outcome("cmd:kate", command_id))
        assert row is not None
        decoded: dict[str, Any] = msgspec.json.decode(row.result)
        return decoded

    async def done(self, verb: str, command_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Send a command and return its outcome."""
        return await self.outcome(await self.command(verb, command_id, **fields))

    async def started(self, **fields: Any) -> str:
        """Start a flow; returns its id."""
        flow_id: str = (await self.done("start", controller_id="kate/test", goal="test", **fields))["flow"]["id"]
        return flow_id

    async def parked(self, correlation_id: str = "c-1", **more: Any) -> str:
        """Start a flow and park it on a reply."""
        flow_id = await self.started()
        wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": correlation_id, **more}
        assert (await self.done("wait", flow_id=flow_id, wait_condition=wait))["ok"]
        return flow_id

    async def reply(self, payload: Any = None, correlation_id: str = "c-1", *, event_id: str | None = None) -> None:
        body = msgspec.json.encode({"correlation_id": correlation_id, "payload": payload})
        await self.agent.publish(TOPIC, body, {"Nats-Msg-Id": event_id} if event_id else {})

    async def ask(self, verb: str, **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Request on `api`."""
        body, headers = await self.agent.request(f"taskflow.api.kate.{verb}", msgspec.json.encode(fields))
        decoded: dict[str, Any] = msgspec.json.decode(body)
        return decoded, dict(headers)

    async def flow(self, flow_id: str) -> Flow:
        found = await self.store.get(flow_id)
        assert found is not None
        return found

    async def settled(self) -> None:
        """Wait until every message has its outcome and every row is published."""
        await eventually(lambda: self._decided and all(relay.idle for relay in self.services.relays))

    @property
    def _decided(self) -> bool:
        """Whether nothing is left to take in, nor in hand."""
        stands = [self.broker.consumer(consumer._source).backlog() for consumer in self.services.consumers]
        return all(one.pending == 0 and one.floor == one.delivered for one in stands)

    async def tried(self, seq: int) -> None:
        """Wait until the message has been delivered and given back or settled."""
        its = self.services.consumers
        await eventually(
            lambda: max(self.broker.consumer(one._source).backlog().delivered for one in its) >= seq and not any(one.in_hand for one in its)
        )

    @property
    def floor(self) -> int:
        """Up to which message everything is settled at the broker."""
        stands = [self.broker.consumer(consumer._source) for consumer in self.services.consumers]
        open_, last = [one.next_open for one in stands], self.broker.streams["TASKFLOW_IN"].last_seq
        return min(open_ or [last + 1]) - 1

    async def events(self) -> list[StoredMessage]:
        return await self.agent.messages("TASKFLOW_EVT")

    async def dead(self) -> list[StoredMessage]:
        return await self.agent.messages("TASKFLOW_DLQ")


@contextlib.asynccontextmanager
async def living(path: Path | str, config: Config | None = None) -> AsyncIterator[Line]:
    """A worker that is running and is stopped at the end, unless the test has ended it."""
    line = Line(path, config)
    await line.start()
    try:
        yield line
    finally:
        if not line.failed:
            await line.stop()


class Gate:
    """Keeps every commit waiting until it is opened; `drop` makes what waits come to nothing, as a kill would."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = threading.Event()
        self._dropped = False
        self._commit = SqliteTransaction.commit

    def open(self) -> None:
        self._opened.set()

    def drop(self) -> None:
        self._dropped = True
        self._opened.set()

    @contextlib.contextmanager
    def closed(self) -> Iterator[Gate]:
        gate, commit, loop = self, self._commit, asyncio.get_running_loop()

        def waiting(transaction: SqliteTransaction) -> None:
            loop.call_soon_threadsafe(gate.reached.set)
            gate._opened.wait()
            if gate._dropped:
                raise asyncio.CancelledError
            commit(transaction)

        with patch.object(SqliteTransaction, "commit", waiting):
            try:
                yield self
            finally:
                gate._opened.set()  # a test that failed must not keep the thread


def sequences(events: list[StoredMessage]) -> dict[str, list[int]]:
    """Return the sequence numbers of each flow's events, in the order of the stream."""
    found: dict[str, list[int]] = {}
    for event in events:
        flow_id, _, seq = event.headers["Nats-Msg-Id"].partition(":")
        found.setdefault(flow_id, []).append(int(seq))
    return found
