"""The bus port: what the worker needs from a broker, with every promise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from operator import eq
from typing import Protocol

import msgspec

from nats_taskflow.bus.endpoints import RequestHandler, Service
from nats_taskflow.wire.headers import Headers

NO_HEADERS: Headers = {}
BATCH_MAX = 500  # messages in one `Bus.publish_all`; JetStream takes 1,000
NO_RESPONDERS = "no responders"  # what `Bus.send` returns where nobody listens
NOT_CONNECTED = "not connected to NATS"


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message from a stream's consumer.

    `seq` is the stream sequence. `attempt` counts deliveries from 1. `arrived_us` is when the broker stored it, by the broker's clock, in
    microseconds since the epoch. `token` is the adapter's handle for `Bus.settle`. `pending` counts the undelivered messages behind it.
    `size` is in bytes.
    """

    subject: str
    headers: Headers
    body: bytes
    stream: str
    seq: int
    attempt: int
    arrived_us: int
    token: str
    pending: int = 0
    size: int = 0


class Ack(msgspec.Struct, frozen=True):
    """Done: never deliver it again."""


class Nak(msgspec.Struct, frozen=True):
    """Not now: deliver it again in `delay` seconds."""

    delay: float


class Term(msgspec.Struct, frozen=True):
    """Never deliver it again: it is useless. `reason` goes into the broker's advisory."""

    reason: str


class InProgress(msgspec.Struct, frozen=True):
    """Still working on it: restart the broker's redelivery timer."""


Settlement = Ack | Nak | Term | InProgress


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a stream.

    `msg_id` becomes `Nats-Msg-Id`: the broker drops a repeat within the duplicate window. `is_same(stored, body)` returns whether a body
    that is stored under this id is this message's.
    """

    subject: str
    body: bytes
    msg_id: str
    headers: Headers = NO_HEADERS
    is_same: Callable[[bytes, bytes], bool] = eq


class ForwardedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A core request whose answer goes to `reply`, which a stream captures, if any."""

    subject: str
    body: bytes
    headers: Headers = NO_HEADERS
    reply: str | None = None


class Published(msgspec.Struct, frozen=True):
    """The broker has stored the message, or had it already (`duplicate`)."""

    stream: str
    seq: int
    duplicate: bool = False


class PublishFailed(Exception):
    """The message may or may not be stored: publish it again with the same `msg_id`.

    `refused`: the broker answered with an error (the stream is full, no such stream, no permission). `unsendable`: it takes such a message
    from nobody (too large for it or its stream, no subject to publish on). `duplicate`: it already has a message of the batch.
    """

    def __init__(self, message: str, *, refused: bool = False, unsendable: bool = False, duplicate: bool = False) -> None:
        super().__init__(message)
        self.refused = refused or unsendable or duplicate
        self.unsendable = unsendable
        self.duplicate = duplicate


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A stream the worker needs (CONTRACT 1).

    `inbound`: agents write to it, so no setting may let them forge messages or discard them. `max_age` and `duplicate_window` are seconds.
    `share` is its part of the broker's storage where `max_bytes` is -1 (0: unlimited).
    """

    name: str
    subjects: tuple[str, ...]
    inbound: bool
    max_age: float
    duplicate_window: float = 600.0
    max_bytes: int = -1
    share: float = 0.0
    max_msg_size: int = -1
    replicas: int = 1


class ConsumerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A durable pull consumer on a stream: one source of deliveries.

    `filters`: only these subjects (all when empty). With `all_but`, also whatever else the stream captures, unless `all_but` covers it.
    `ends_waits`: deadlines wait for what it delivers (SEMANTICS R9). `ack_wait` is seconds. `max_bytes` bounds one pull request.
    """

    stream: str
    consumer: str = "worker"
    filters: tuple[str, ...] = ()
    all_but: tuple[str, ...] = ()
    ends_waits: bool = False
    ack_wait: float = 30.0
    max_ack_pending: int = 2000
    max_bytes: int = 1024 * 1024

    @property
    def label(self) -> str:
        """What people call it."""
        return f"consumer {self.consumer} of stream {self.stream}"


class ClaimHolder(msgspec.Struct, frozen=True, kw_only=True):
    """The database that a worker's consumers serve, and the worker's process."""

    database: str
    host: str = "?"  # as the others, unknown to `taskflow provision`
    store: str = "?"
    pid: str = "?"


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """How far a source is: settled up to `floor`, delivered up to `delivered`."""

    floor: int
    delivered: int
    pending: int  # how many are not delivered yet


class Bus(Protocol):
    """A broker connection. Call it from the event loop's thread only."""

    @property
    def connected(self) -> bool:
        """Whether the broker answers at the moment. False while reconnecting."""

    @property
    def offset(self) -> int:
        """How many microseconds the broker's clock is ahead of ours; 0 until measured."""

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and came back."""

    @property
    def dropped(self) -> int:
        """How many messages were refused or dropped unread because too many waited."""

    @property
    def max_payload(self) -> int:
        """The most bytes (headers and body) the broker takes in one message."""

    @property
    def lost(self) -> asyncio.Future[str]:
        """Resolves with the reason once the connection is lost for good (not by `close`)."""

    @property
    def address(self) -> str:
        """The server's address for people, without credentials: `nats://127.0.0.1:4222`."""

    async def open(self) -> None:
        """Connect. Raises `BusLost` within the connect timeout: unreachable or refused."""

    async def prepare(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, holder: ClaimHolder | None = None, adopt: bool = False
    ) -> list[str]:
        """Create missing streams, durable consumers and subjects, and check the rest.

        The consumers are claimed for `holder`, unless another database has claimed them; with `adopt`, even then. Returns warnings for the
        operator (for example: a single replica without `sync_interval: always`). Raises `TopologyRefused`, which names the stream and the
        setting that would break a promise, or `ConsumerTaken`, which names the database of the consumer. Nothing is changed then.
        """

    async def inspect(self) -> list[str]:
        """Check again what `prepare` was given, and create what was deleted.

        Returns what breaks a promise now, a sentence each. A changed setting is only named: whoever changed it had a reason. Raises
        `PublishFailed` when the broker does not answer, `ConsumerTaken` once a worker on another database has adopted a consumer.
        """

    @property
    def untrusted(self) -> frozenset[ConsumerSpec]:
        """Sources not to pull: their messages may not be what was sent (last `inspect`)."""

    def take_repaired(self) -> tuple[ConsumerSpec, ...]:
        """Return, once each, the repaired sources. They may have skipped messages before."""

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return after how many seconds the broker delivers again, as last read from it."""

    @property
    def trouble(self) -> str:
        """Why no message or request comes although connected; empty: no reason is known."""

    async def backlog(self, source: ConsumerSpec) -> Backlog:
        """Return how far the source is. Raises `PublishFailed` if the broker is silent."""

    async def first_kept(self, stream: str) -> int:
        """Return the lowest sequence kept, or one past the last. Raises `PublishFailed`."""

    async def stream_created(self, stream: str) -> str:
        """Return when the stream was created: its identity. Raises `PublishFailed`."""

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Have everything above the ack floor, or from `to` on, delivered again at once.

        With `to`, settled messages come again, too. Returns False where the broker cannot do it (older server, no permission).
        """

    async def pull(self, source: ConsumerSpec, take: Callable[[Delivery], None], room: Callable[[], int]) -> None:
        """Deliver in stream order until cancelled.

        `take` is called on the loop for each message; it must not raise or block. `room()` returns how many more messages the caller takes
        now (0: stop asking); call `wake` once there is more. Survives a broker restart, a deleted consumer (it is created again) and a long
        outage. Raises `ConsumerTaken` where a worker on another database took the consumer over during an outage.
        """

    def wake(self) -> None:
        """Have every `pull` ask `room()` again."""

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Settle a delivery. Never raises. If the settlement is lost, it comes again."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Store a message on its stream. The future may fail with `PublishFailed`.

        It resolves within the publish timeout. Where the broker already has a message under this `msg_id`, a different one fails as
        `unsendable` while the broker knows the id. Messages that follow one another are stored in that order, if at all.
        """

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Store up to `BATCH_MAX` messages on one stream: all in this order, or none.

        The future gives the place of the last one, and fails as that of `publish` does, within the same time. If `refused`, none is stored,
        and they can be published one by one: the broker or the stream takes no batches, would not take one of these alone, or already has
        one (its `msg_id`). If not `refused`, all or none are stored, now or later. Batches and single messages are stored in the order of
        the calls.
        """

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Publish without any guarantee (core NATS). Never raises."""

    async def send(self, messages: Sequence[ForwardedRequest]) -> list[str | None]:
        """Publish core messages with their reply subjects, in order; at most 256 at once.

        Never raises. Returns for each message None once the server has it and somebody listens (or it has no reply subject), else a
        sentence why not: `NO_RESPONDERS`, not connected, too large, a bad subject, no permission. `may or may not have been sent` in a
        sentence means that; with any other, nobody got the message. Returns within the publish timeout, and at once when the connection is
        lost. A stream that captures the subject counts as a listener: its acknowledgement goes to `reply`, like any answer.
        """

    async def serve(self, service: Service, handler: RequestHandler) -> None:
        """Register the micro service. Each request is a task; `handler` must not raise."""

    async def stop_serving(self) -> None:
        """Deregister the service, then wait for the requests in hand."""

    async def flush(self) -> None:
        """Wait a short time until settlements and core messages have left. Never raises."""

    async def close(self) -> None:
        """Close the connection without draining. Idempotent; never raises."""
