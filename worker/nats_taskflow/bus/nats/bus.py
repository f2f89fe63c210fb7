"""The bus port on NATS JetStream: nats-py 2.16, one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from nats.errors import Error as NatsError

from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.bus.nats.connection import ApiTimeout, NatsConnection, NatsOptions
from nats_taskflow.bus.nats.options import reason
from nats_taskflow.bus.nats.outbound import Frame, objection
from nats_taskflow.bus.nats.publisher import Publisher
from nats_taskflow.bus.nats.pull import Pull
from nats_taskflow.bus.nats.pull_protocol import spell_settlement
from nats_taskflow.bus.nats.requests import RequestSender
from nats_taskflow.bus.nats.service import ServiceServer
from nats_taskflow.bus.nats.stream_rules import Json
from nats_taskflow.bus.nats.topology import TopologySetup
from nats_taskflow.bus.port import (
    NO_HEADERS,
    Backlog,
    ClaimHolder,
    ConsumerSpec,
    Delivery,
    ForwardedRequest,
    Headers,
    OutgoingMessage,
    Published,
    PublishFailed,
    Settlement,
    StreamSpec,
)
from nats_taskflow.errors import BusLost

__all__ = ["Endpoint", "JetStreamBus", "NatsOptions"]

_FLUSH_TIMEOUT = 2.0


class JetStreamBus:
    """See `nats_taskflow.bus.port.Bus` for every promise. `heartbeat` (seconds): two missed ones make `pull` ask again."""

    def __init__(self, options: NatsOptions, *, heartbeat: float = 5.0) -> None:
        self._connection = NatsConnection(options)
        self._connection.on_up.append(self._count_reconnect)
        self._reconnects = 0
        self._publisher = Publisher(self._connection, timeout=options.publish_timeout)
        self._asking = RequestSender(self._connection, timeout=options.publish_timeout)
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
        """How many messages were dropped unread, or refused so."""
        return self._connection.dropped + (self._server.refused if self._server is not None else 0)

    def _count_reconnect(self) -> None:
        """Count one more."""
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
        """Where it is connected to, without credentials."""
        return self._connection.address

    @property
    def pull_requests(self) -> int:
        """How many pull requests the running pulls have sent: an idle worker sends one in half a minute."""
        return sum(pull.requests for pull in self._pulls)

    async def open(self) -> None:
        """Connect; raises `BusLost`."""
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
        enforced: bool = False,
    ) -> list[str]:
        """Create and check streams and consumers; raises `TopologyRefused` or `ConsumerTaken`.

        `dry_run`: only check them. `enforced`: also give streams that are there the limits asked for, whatever they then no longer keep.
        """
        return await self._topology.prepare(streams, sources, holder, adopt=adopt, dry_run=dry_run, enforced=enforced)

    async def inspect(self) -> list[str]:
        """Look again at what `prepare` was given."""
        try:
            return await self._topology.inspect()
        except ApiTimeout as error:
            raise PublishFailed(str(error)) from error

    @property
    def untrusted(self) -> frozenset[ConsumerSpec]:
        """The sources that may deliver what was not sent so, as last seen."""
        return self._topology.untrusted

    def mended(self) -> tuple[ConsumerSpec, ...]:
        """Return the sources whose consumer's settings are right again, each once."""
        return self._topology.mended()

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return the seconds after which the broker delivers again, as last seen."""
        return self._topology.ack_wait(source)

    @property
    def trouble(self) -> str:
        """Why it does not deliver, or hear requests, though connected."""
        return self._connection.renewal.unheard or next((pull.trouble for pull in self._pulls if pull.trouble), "")

    async def backlog(self, source: ConsumerSpec) -> Backlog:
        """Tell where the source stands; `delivered` starts again at `floor` after a rewind."""
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

    async def born(self, stream: str) -> str:
        """Say when the stream was made."""
        created: str = (await self._stream_info(stream))["created"]
        return created

    async def _stream_info(self, stream: str) -> Json:
        """Return all that is told of a stream. Raises `PublishFailed`."""
        try:
            return await self._topology.stream_info(stream)
        except ApiTimeout as error:
            raise PublishFailed(str(error)) from error

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Deliver everything above the ack floor, or from `to` on, again, at once (nats-server 2.12 and later)."""
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
        """Make the pulls look again whether there is room."""
        for pull in self._pulls:
            pull.wake()

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Answer a delivery; kept for a reconnect, since a late ack still spares a redelivery."""
        self._connection.outbound.put(Frame(delivery.token, spell_settlement(settlement), keep=True))

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Store a message on its stream."""
        return self._publisher.publish(message)

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Store messages on their stream, all or none, where it allows atomic batches."""
        if self._topology.batches.taken_on(messages[0].subject):
            return self._publisher.publish_all(messages)
        refused: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        refused.set_exception(PublishFailed(f"the stream of {messages[0].subject} does not allow atomic batches", refused=True))
        return refused

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Publish without any guarantee; what the broker would refuse is dropped here."""
        refusal = objection(subject, body, headers, self.max_payload)
        if refusal is not None:
            self._log.warning("bus.not_told", reason=refusal)
            return
        self._connection.outbound.put(Frame(subject, body, headers=headers))
        await self._connection.outbound.left()

    async def send(self, messages: Sequence[ForwardedRequest]) -> list[str | None]:
        """Publish core messages whose answers come elsewhere; say of each why it did not reach anybody."""
        return await self._asking.send(messages)

    async def serve(self, service: Service, handler: Callable[[ServiceRequest], Awaitable[None]]) -> None:
        """Register the micro service. Raises `BusLost`."""
        self._server = ServiceServer(self._connection)
        try:
            await self._server.start(service, handler)
        except (NatsError, OSError) as error:
            why = f"{reason(error)}; the last error of the connection is bus.error in the log"
            message = f"NATS did not take the subscriptions for requests ({why}): does it limit them (max_subscriptions)? Start again"
            raise BusLost(message) from error

    async def stop_serving(self) -> None:
        """Deregister the service and wait for the requests in hand."""
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def flush(self) -> None:
        """Push out what was queued, bounded by two seconds."""
        if not self.connected:
            return
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._connection.outbound.drained()
                await self._connection.flush()
        except Exception as error:  # noqa: BLE001  flushing is best effort: what is lost comes again
            self._log.debug("bus.flush_failed", reason=repr(error))

    async def close(self) -> None:
        """Close without draining."""
        self._publisher.close()
        await self._connection.close()
