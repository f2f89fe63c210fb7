"""The bus port on NATS JetStream: nats-py 2.16, one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from nats.errors import Error as NatsError

from nats_taskflow.bus.endpoints import Endpoint, RequestHandler, Service
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.nats.connection import ApiTimeout, NatsConnection, NatsOptions
from nats_taskflow.bus.nats.options import reason
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.nats.publisher import Publisher
from nats_taskflow.bus.nats.pull import Pull
from nats_taskflow.bus.nats.pull_protocol import encode_settlement
from nats_taskflow.bus.nats.requests import RequestSender
from nats_taskflow.bus.nats.service import ServiceServer
from nats_taskflow.bus.nats.topology import TopologySetup
from nats_taskflow.bus.port import (
    NO_HEADERS,
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
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.errors import BusLost
from nats_taskflow.wire.headers import Headers

__all__ = ["Endpoint", "JetStreamBus", "NatsOptions"]

_FLUSH_TIMEOUT = 2.0


class JetStreamBus:
    """See `bus.port.Bus` for every promise.

    `heartbeat` (seconds): after two missed ones, `pull` asks again.
    """

    def __init__(self, options: NatsOptions, *, heartbeat: float = 5.0) -> None:
        self._connection = NatsConnection(options)
        self._connection.on_up.append(self._count_reconnect)
        self._reconnects = 0
        self._publisher = Publisher(self._connection, timeout=options.publish_timeout)
        self._requests = RequestSender(self._connection, timeout=options.publish_timeout)
        self._topology = TopologySetup(self._connection, monitor_url=options.monitor_url)
        self._server: ServiceServer | None = None
        self._heartbeat = heartbeat
        self._pulls: list[Pull] = []
        self._log = structlog.get_logger()

    @property
    def connected(self) -> bool:
        """Whether the broker answers at the moment."""
        return self._connection.connected

    @property
    def offset(self) -> int:
        """How many microseconds the broker's clock is ahead of ours."""
        return self._topology.clock.value

    @property
    def reconnects(self) -> int:
        """How often the connection came back."""
        return self._reconnects

    @property
    def dropped(self) -> int:
        """How many messages were dropped or refused unread."""
        return self._connection.dropped + (self._server.refused if self._server is not None else 0)

    def _count_reconnect(self) -> None:
        self._reconnects += 1

    @property
    def max_payload(self) -> int:
        """The most bytes the broker takes in one message."""
        return self._connection.max_payload

    @property
    def lost(self) -> asyncio.Future[str]:
        """Resolves when the connection is closed for good."""
        return self._connection.lost

    @property
    def address(self) -> str:
        """The server it is connected to, without credentials."""
        return self._connection.address

    @property
    def pull_requests(self) -> int:
        """How many pull requests the running pulls have sent.

        An idle worker sends one in half a minute.
        """
        return sum(pull.requests for pull in self._pulls)

    async def open(self) -> None:
        """Connect. Raises `BusLost`."""
        await self._connection.open()
        await self._publisher.open()

    async def prepare(
        self,
        streams: tuple[StreamSpec, ...],
        sources: tuple[ConsumerSpec, ...],
        *,
        holder: ClaimHolder | None = None,
        adopt: bool = False,
        dry_run: bool = False,
        set_limits: bool = False,
    ) -> list[str]:
        """Create and check everything. Raises `TopologyRefused` or `ConsumerTaken`.

        `dry_run`: only check it. `set_limits`: also give existing streams the limits of the settings, whatever they then discard.
        """
        return await self._topology.prepare(streams, sources, holder, adopt=adopt, dry_run=dry_run, set_limits=set_limits)

    async def inspect(self) -> list[str]:
        """Check again what `prepare` was given."""
        try:
            return await self._topology.inspect()
        except ApiTimeout as error:
            raise PublishFailed(str(error)) from error

    @property
    def untrusted(self) -> frozenset[ConsumerSpec]:
        """The sources that must not be pulled, as last seen."""
        return self._topology.untrusted

    def take_repaired(self) -> tuple[ConsumerSpec, ...]:
        """Return, once each, the sources whose consumer is repaired."""
        return self._topology.take_repaired()

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return after how many seconds the broker delivers again, as last seen."""
        return self._topology.ack_wait(source)

    @property
    def trouble(self) -> str:
        """Why it delivers nothing, or hears no requests, although it is connected."""
        return self._connection.renewal.unheard or next((pull.trouble for pull in self._pulls if pull.trouble), "")

    async def backlog(self, source: ConsumerSpec) -> Backlog:
        """Return how far the source is. A rewind sets `delivered` back to `floor`."""
        try:
            info = await self._topology.consumer_info(source)
        except ApiTimeout as error:
            raise PublishFailed(str(error)) from error
        return Backlog(
            floor=info["ack_floor"]["stream_seq"],
            delivered=info["delivered"]["stream_seq"],
            pending=info["num_pending"],
        )

    async def first_kept(self, stream: str) -> int:
        """Return the lowest sequence that the stream still keeps."""
        first: int = (await self._stream_info(stream))["state"]["first_seq"]
        return max(first, 1)  # the server says 0 for a stream that never had a message

    async def stream_created(self, stream: str) -> str:
        """Return when the stream was created."""
        created: str = (await self._stream_info(stream))["created"]
        return created

    async def _stream_info(self, stream: str) -> Json:
        """Return the stream's info. Raises `PublishFailed`."""
        try:
            return await self._topology.stream_info(stream)
        except ApiTimeout as error:
            raise PublishFailed(str(error)) from error

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Have everything above the ack floor, or from `to` on, delivered again at once.

        Needs nats-server 2.12 or later.
        """
        return await self._topology.rewind(source, to)

    async def pull(self, source: ConsumerSpec, take: Callable[[Delivery], None], room: Callable[[], int]) -> None:
        """Deliver continuously until cancelled."""
        topology = self._topology
        pull = Pull(self._connection, source, take, room, recreate=topology.recreate, resume=topology.resume, heartbeat=self._heartbeat)
        self._pulls.append(pull)
        try:
            await pull.run()
        finally:
            self._pulls.remove(pull)

    def wake(self) -> None:
        """Have the pulls look for room again."""
        for pull in self._pulls:
            pull.wake()

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Answer a delivery."""
        # Kept for a reconnect: a late ack still spares a redelivery.
        self._connection.outbound.put(Frame(delivery.token, encode_settlement(settlement), keep=True))

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Store a message on its stream."""
        return self._publisher.publish(message)

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Store messages on their stream, all or none, where it allows atomic batches."""
        if self._topology.batches.allowed_on(messages[0].subject):
            return self._publisher.publish_all(messages)
        refused: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        refused.set_exception(PublishFailed(f"the stream of {messages[0].subject} does not allow atomic batches", refused=True))
        return refused

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Publish without any guarantee. What the broker would refuse is dropped here."""
        refusal = objection(subject, body, headers, self.max_payload)
        if refusal is not None:
            self._log.warning("bus.not_told", reason=refusal)
            return
        self._connection.outbound.put(Frame(subject, body, headers=headers))
        await self._connection.outbound.wait_for_room()

    async def send(self, messages: Sequence[ForwardedRequest]) -> list[str | None]:
        """Publish requests whose answers go elsewhere. Returns for each why nobody got it."""
        return await self._requests.send(messages)

    async def serve(self, service: Service, handler: RequestHandler) -> None:
        """Register the micro service. Raises `BusLost`."""
        self._server = ServiceServer(self._connection)
        try:
            await self._server.start(service, handler)
        except (NatsError, OSError) as error:
            why = f"{reason(error)}; the last error of the connection is bus.error in the log"
            raise BusLost(
                f"NATS did not take the subscriptions for requests ({why}): does it limit them (max_subscriptions)? Start again"
            ) from error

    async def stop_serving(self) -> None:
        """Deregister the service, then wait for the requests in hand."""
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def flush(self) -> None:
        """Wait until what is queued has left, for two seconds at most."""
        if not self.connected:
            return
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._connection.outbound.drain()
                await self._connection.flush()
        except Exception as error:  # noqa: BLE001  best effort: what is lost is delivered again
            self._log.debug("bus.flush_failed", reason=repr(error))

    async def close(self) -> None:
        """Close without draining."""
        self._publisher.close()
        await self._connection.close()
