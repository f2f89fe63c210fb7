"""The bus port in the process, for tests: the project's only fake.

It passes the same contract suite as JetStream. Several `MemoryBus` connections share one `MemoryBroker`, which keeps the streams;
`MemoryClient` is an agent's connection to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from nats_taskflow.bus.endpoints import RequestHandler, Service
from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker, MemoryClient
from nats_taskflow.bus.memory.service import MemoryServer
from nats_taskflow.bus.memory.stream import StoredMessage, WireMessage
from nats_taskflow.bus.memory.topology import MemoryTopology
from nats_taskflow.bus.message_limits import objection, request_objection
from nats_taskflow.bus.port import (
    NO_HEADERS,
    NOT_CONNECTED,
    Backlog,
    ClaimHolder,
    ConsumerSpec,
    Delivery,
    ForwardedRequest,
    OutgoingMessage,
    Published,
    PublishFailed,
    Settlement,
    StreamSpec,
)
from nats_taskflow.bus.setting_rules import NS_PER_S
from nats_taskflow.errors import BusLost, TopologyRefused
from nats_taskflow.futures import fail, resolve
from nats_taskflow.wire.headers import MSG_ID, Headers

__all__ = ["CoreMessage", "MemoryBroker", "MemoryBus", "MemoryClient", "StoredMessage"]

_MAX_PAYLOAD = 1024 * 1024
_YIELD_EVERY = 256


class MemoryBus:
    """A connection: see `bus.port.Bus` for every promise.

    The other methods are switches for tests.
    """

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self._topology = MemoryTopology(self.broker)
        self._connected, self.reconnects, self.offset = False, 0, 0
        self._lost: asyncio.Future[str] | None = None
        self._failures: list[tuple[PublishFailed, bool]] = []
        self._wakers: list[asyncio.Event] = []
        self._prepared: tuple[tuple[StreamSpec, ...], tuple[ConsumerSpec, ...], ClaimHolder | None] = ((), (), None)
        self.trouble = ""
        self.untrusted: frozenset[ConsumerSpec] = frozenset()
        self.max_payload = _MAX_PAYLOAD
        self._server = MemoryServer(self, self.broker)
        self._log = structlog.get_logger()

    @property
    def dropped(self) -> int:
        """How many requests were refused because too many waited."""
        return self._server.refused

    @property
    def connected(self) -> bool:
        """Whether it is open and not disconnected by a test."""
        return self._connected

    @property
    def lost(self) -> asyncio.Future[str]:
        """Resolves when a test calls `lose`."""
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
        return self._lost

    @property
    def address(self) -> str:
        """A name for people."""
        return "memory://broker"

    def client(self) -> MemoryClient:
        """Return an agent's connection to the same broker."""
        return MemoryClient(self.broker)

    def disconnect(self) -> None:
        """Lose the broker: publishes fail, deliveries stop, settlements are lost."""
        self._connected = False

    def reconnect(self) -> None:
        """Find the broker again."""
        self._connected, self.reconnects = True, self.reconnects + (not self._connected)
        self.broker.tick()

    def fail_publishes(self, count: int, *, refused: bool = False, stored: bool = False) -> None:
        """Have the next publishes fail; `stored`: only the acknowledgement is lost."""
        self._failures += [(PublishFailed("a test made it fail", refused=refused), stored)] * count

    def lose(self, reason: str) -> None:
        """Close the connection for good."""
        self._connected = False
        self.lost.set_result(reason)

    async def open(self) -> None:
        """Connect. Raises `BusLost` once the connection was closed for good."""
        if self._lost is not None and self._lost.done():
            raise BusLost(self._lost.result())
        self._connected = True

    async def prepare(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, holder: ClaimHolder | None = None, adopt: bool = False
    ) -> list[str]:
        """Create and check everything. Raises `TopologyRefused` or `ConsumerTaken`."""
        self._prepared = (streams, sources, holder)
        return self._topology.prepare(streams, sources, holder, adopt=adopt)

    async def inspect(self) -> list[str]:
        """Create what was deleted; return what breaks a promise."""
        if not self._connected:
            raise PublishFailed("not connected")
        distrust = self._topology.distrust(*self._prepared[:2])
        self.untrusted = frozenset(distrust)
        try:
            self._topology.prepare(*self._prepared, live=True)
        except TopologyRefused as refused:
            return [*str(refused).splitlines(), *distrust.values()]
        return []

    def take_repaired(self) -> tuple[ConsumerSpec, ...]:
        """Return nothing: this broker gives up on no message, whatever its settings."""
        return ()

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return the seconds after which the broker delivers again."""
        return float(self.broker.consumer(source).config["ack_wait"]) / NS_PER_S

    async def backlog(self, source: ConsumerSpec) -> Backlog:
        """Return how far the source is."""
        if not self._connected:
            raise PublishFailed("not connected")
        return self.broker.consumer(source).backlog()

    async def first_kept(self, stream: str) -> int:
        """Return the lowest sequence that the stream still keeps."""
        if not self._connected:
            raise PublishFailed("not connected")
        return self.broker.streams[stream].first

    async def stream_created(self, stream: str) -> str:
        """Return when the stream was created."""
        if not self._connected:
            raise PublishFailed("not connected")
        return self.broker.streams[stream].created

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Deliver everything above the ack floor, or from `to` on, again, at once."""
        if self._connected:
            self.broker.consumer(source).rewind(to)
            self.broker.tick()
        return self._connected

    async def pull(self, source: ConsumerSpec, take: Callable[[Delivery], None], room: Callable[[], int]) -> None:
        """Deliver continuously until cancelled."""
        waker = asyncio.Event()
        self._wakers.append(waker)
        self.broker.wakers.append(waker.set)
        try:
            while True:
                waker.clear()
                delivered = 0
                while self._deliver_one(source, take, room):
                    delivered += 1
                    if delivered % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
                await self._pause(waker, source, room)
        finally:
            self._wakers.remove(waker)
            self.broker.wakers.remove(waker.set)

    def wake(self) -> None:
        """Have the pulls look for room again."""
        for waker in self._wakers:
            waker.set()

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Settle a delivery; lost while disconnected."""
        stream, consumer, seq = delivery.token.split()
        state = self.broker.consumers.get((stream, consumer))
        if self._connected and state is not None:
            state.settle(int(seq), settlement, self.broker.clock())
            self.broker.tick()

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Store a message. The future resolves in a later turn of the loop, as with NATS."""
        return self._store([message], lambda messages: self.broker.publish(*messages[0]))

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Store messages on their stream, all or none, where it allows atomic batches."""
        return self._store(messages, self.broker.publish_all)

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Publish without any guarantee."""
        refusal = objection(subject, body, headers, self.max_payload)
        if refusal is not None or not self._connected:
            self._log.debug("bus.not_told", reason=refusal or "disconnected")
            return
        try:
            self.broker.publish(subject, body, headers)
        except PublishFailed as failed:
            self._log.debug("bus.not_told", reason=str(failed))

    async def send(self, messages: Sequence[ForwardedRequest]) -> list[str | None]:
        """Publish core messages whose answers come elsewhere."""
        return [request_objection(request, self.max_payload) or self._ask(request) for request in messages]

    async def serve(self, service: Service, handler: RequestHandler) -> None:
        """Register the service's endpoints and its catch-all."""
        self._server.start(service, handler)

    async def stop_serving(self) -> None:
        """Deregister, and wait for the requests in hand."""
        await self._server.stop()

    async def flush(self) -> None:
        """Do nothing, since nothing is buffered."""

    async def close(self) -> None:
        """Close this connection; the broker keeps everything."""
        self._server.deregister()
        self._connected = False

    def _ask(self, request: ForwardedRequest) -> str | None:
        return self.broker.ask(request) if self._connected else NOT_CONNECTED

    def _deliver_one(self, source: ConsumerSpec, take: Callable[[Delivery], None], room: Callable[[], int]) -> bool:
        """Deliver one message, if there is one and room for it."""
        if not self._connected or room() <= 0:
            return False
        delivery = self.broker.consumer(source).deliver(self.broker.clock())
        if delivery is None:
            return False
        take(delivery)
        return True

    async def _pause(self, waker: asyncio.Event, source: ConsumerSpec, room: Callable[[], int]) -> None:
        """Wait until woken, or until a redelivery is due by the broker's clock."""
        # Without room or a connection only `waker` helps, however long something is overdue.
        due = self.broker.consumer(source).next_due() if self._connected and room() > 0 else None
        wait = None if due is None else max((due - self.broker.clock()) / 1_000_000, 0.001)
        try:
            async with asyncio.timeout(wait):
                await waker.wait()
        except TimeoutError:
            return

    def _store(
        self, messages: Sequence[OutgoingMessage], store: Callable[[list[WireMessage]], Published | None]
    ) -> asyncio.Future[Published]:
        """Store messages, or fail as a test asked for, in a later turn of the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Published] = loop.create_future()
        try:
            loop.call_soon(resolve, future, self._store_now(messages, store))
        except PublishFailed as failed:
            loop.call_soon(fail, future, failed)
        return future

    def _store_now(self, messages: Sequence[OutgoingMessage], store: Callable[[list[WireMessage]], Published | None]) -> Published:
        """Store messages. Raises `PublishFailed`."""
        if not self._connected:
            raise PublishFailed("not connected")
        outgoing = [WireMessage(m.subject, m.body, {**m.headers, **({MSG_ID: m.msg_id} if m.msg_id else {})}) for m in messages]
        for refusal in (objection(*message, self.max_payload) for message in outgoing):
            if refusal is not None:
                raise PublishFailed(refusal, unsendable=True)
        failure, stored = self._failures.pop(0) if self._failures else (None, True)
        published = store(outgoing) if stored else None
        if failure is not None:
            raise failure
        if published is None:
            raise PublishFailed(f"no stream takes {messages[0].subject}", refused=True)
        first = self.broker.streams[published.stream].messages.get(published.seq) if published.duplicate else None
        if first is not None and not (first.subject == messages[0].subject and messages[0].is_same(first.body, messages[0].body)):
            raise PublishFailed(
                f"message {first.seq} has the id of a message on {messages[0].subject}, and is another one", unsendable=True
            )
        return published
