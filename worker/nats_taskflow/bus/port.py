"""The bus port: what the worker needs of a broker, with every promise written down.

Adapters: `bus.jetstream` and `bus.memory` (the test kit's broker); both pass `tests/contract`. Nothing of nats-py shows here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import eq
from typing import Protocol

import msgspec

from nats_taskflow.bus.endpoints import Service, ServiceRequest

Headers = Mapping[str, str]
NO_HEADERS: Headers = {}
MOST_TOGETHER = 500  # messages that `Bus.publish_all` takes at once; JetStream's limit is 1,000
NO_RESPONDERS = "no responders"  # what `Bus.send` says of a message that nobody listens for


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message as a stream's consumer handed it over.

    `seq` is the stream sequence; `attempt` counts deliveries from 1; `arrived_us` is when the broker stored it (microseconds since the
    epoch, its clock); `token` is the adapter's handle for `Bus.settle`; `pending`: how many were undelivered behind it; `size`: in bytes.
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
    """Not now: deliver it again after `delay` seconds."""

    delay: float


class Term(msgspec.Struct, frozen=True):
    """Never deliver it again: it is of no use; `reason` goes into the broker's advisory."""

    reason: str


class InProgress(msgspec.Struct, frozen=True):
    """Still working on it: restart the broker's redelivery timer."""


Settlement = Ack | Nak | Term | InProgress


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a stream. `msg_id` becomes `Nats-Msg-Id`: a repeat within the duplicate window is dropped by the broker.

    `is_same(stored, body)` tells whether a body that is stored under the id is this message's.
    """

    subject: str
    body: bytes
    msg_id: str
    headers: Headers = NO_HEADERS
    is_same: Callable[[bytes, bytes], bool] = eq


class ForwardedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A core message whose answer comes elsewhere: on `reply`, the NATS reply subject (None: none), which a stream captures."""

    subject: str
    body: bytes
    headers: Headers = NO_HEADERS
    reply: str | None = None


class Published(msgspec.Struct, frozen=True):
    """The broker has stored the message (or had it already: `duplicate`)."""

    stream: str
    seq: int
    duplicate: bool = False


class PublishFailed(Exception):
    """The message may or may not be stored: publish it again with the same `msg_id`.

    `refused`: the broker answered with an error (the stream is full, no such stream, no permission). `unsendable`: it would take no such
    message from anybody (too large for it or its stream, no subject to publish on). `duplicate`: it has a message of the batch.
    """

    def __init__(self, message: str, *, refused: bool = False, unsendable: bool = False, duplicate: bool = False) -> None:
        super().__init__(message)
        self.refused = refused or unsendable or duplicate
        self.unsendable = unsendable
        self.duplicate = duplicate


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A stream the worker needs (CONTRACT 1). `inbound`: agents write to it, so what could forge messages, or throw them away, is refused.

    `max_age` and `duplicate_window` are seconds; `share` is its part of what the broker grants where `max_bytes` is -1 (0: unlimited).
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
    """Where deliveries come from: a durable pull consumer on a stream.

    `filters`: only these subjects (all when empty); with `all_but`, also all else that the stream captures, except what that covers.
    `ends_waits`: deadlines wait for what it delivers (SEMANTICS R9). `ack_wait` is seconds; `max_bytes` bounds one pull request's bytes.
    """

    stream: str
    consumer: str = "worker"
    filters: tuple[str, ...] = ()
    all_but: tuple[str, ...] = ()
    ends_waits: bool = False
    ack_wait: float = 30.0
    max_ack_pending: int = 2000
    max_bytes: int = 1024 * 1024


class ClaimHolder(msgspec.Struct, frozen=True, kw_only=True):
    """The database that a worker's consumers serve: its id, the host and the path where it lies, and for people the worker's process.

    Whoever makes consumers for a worker knows no more than the id.
    """

    database: str
    host: str = "?"
    store: str = "?"
    pid: str = "?"


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """Where a source stands: all up to `floor` are settled, `delivered` was handed out last, `pending` messages not yet."""

    floor: int
    delivered: int
    pending: int


class Bus(Protocol):
    """A broker connection. Every method may be called from the event loop's thread only."""

    @property
    def connected(self) -> bool:
        """Whether the broker answers at the moment. False while reconnecting."""

    @property
    def offset(self) -> int:
        """How many microseconds the broker's clock is ahead of ours, as last measured; 0 where it was not."""

    @property
    def reconnects(self) -> int:
        """How often the connection came back after it was lost."""

    @property
    def dropped(self) -> int:
        """How many messages came and were refused or dropped unread, because too many waited before them."""

    @property
    def max_payload(self) -> int:
        """The most bytes (headers and body) the broker takes in one message."""

    @property
    def lost(self) -> asyncio.Future[str]:
        """Resolves with the reason when the connection is closed for good (not by `close`)."""

    @property
    def address(self) -> str:
        """Where it is connected to, for people, without credentials: `nats://127.0.0.1:4222`."""

    async def open(self) -> None:
        """Connect. Raises `BusLost` with a clear sentence within the connect timeout: unreachable, or credentials refused."""

    async def prepare(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, holder: ClaimHolder | None = None, adopt: bool = False
    ) -> list[str]:
        """Create the missing streams and durable consumers, add missing subjects, check the rest.

        `holder`: whose consumers they are from now on, unless they are somebody else's; `adopt`: also then. Returns warnings for the
        operator (for example: a single replica without `sync_interval: always`). Raises `TopologyRefused` naming the stream and setting
        that would break a promise, `ConsumerTaken` naming the database that a consumer belongs to; nothing is changed then.
        """

    async def inspect(self) -> list[str]:
        """Look again at what `prepare` was given: make what was deleted, and say what breaks a promise now, a sentence each.

        Settings that somebody changed are only named: whoever changed them had a reason. Raises `PublishFailed` when the broker does
        not answer, `ConsumerTaken` once a worker on another database has adopted a consumer.
        """

    @property
    def untrusted(self) -> frozenset[ConsumerSpec]:
        """The sources that must not be pulled, as last inspected: what they deliver may not be what was sent."""

    def mended(self) -> tuple[ConsumerSpec, ...]:
        """Return the sources whose consumer's settings broke a promise, so that it may have given up on messages, and are right again."""

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return the seconds after which the broker delivers again, as last seen: an operator may have changed it."""

    @property
    def trouble(self) -> str:
        """Why it does not deliver, or hear requests, though connected; empty when all is well, as far as it knows."""

    async def backlog(self, source: ConsumerSpec) -> Backlog:
        """Tell where the source stands. Raises `PublishFailed` when the broker does not answer."""

    async def first_kept(self, stream: str) -> int:
        """Return the lowest sequence that the stream still keeps (one past the last for an empty stream).

        Raises `PublishFailed` when the broker does not answer.
        """

    async def born(self, stream: str) -> str:
        """Say when the stream was made: it tells one stream of a name from the next. Raises `PublishFailed` as `first_kept` does."""

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Make the broker deliver everything above the ack floor at once, instead of after `ack_wait`.

        `to`: everything from this sequence on instead, whether it was settled or not. Returns False where the broker cannot (older
        server, no permission): redelivery then comes with `ack_wait`.
        """

    async def pull(self, source: ConsumerSpec, take: Callable[[Delivery], None], room: Callable[[], int]) -> None:
        """Deliver continuously until cancelled: `take` is called on the loop for each message, and must not raise or block.

        Raises `ConsumerTaken` where a worker on another database has taken the consumer over during an outage.

        `room()` says how many more messages the caller takes now (0: stop asking). Call `wake` after room was made.
        Survives a broker restart, a deleted consumer (created again) and a long outage; delivers in stream order.
        """

    def wake(self) -> None:
        """Tell `pull` that room was made."""

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Tell the broker what became of a delivery. Never raises; lost settlements end in a redelivery."""

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Store a message on its stream. The future fails with `PublishFailed`; it always resolves within the publish timeout.

        Where the broker has one under its `msg_id` already it is looked at: another message is no repeat (`unsendable`, as long as the
        broker knows the id).
        Messages published one after another on one connection are stored in that order, as far as they are stored at all.
        """

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Store up to `MOST_TOGETHER` messages of one stream: all of them in this order, or none. The future tells the last one's place.

        It fails like that of `publish`, within the same time. Refused, none is stored: the broker or the stream takes no messages
        together, or would not take one of these by itself, or has one already (its `msg_id`): publish them one by one. Not refused, all
        or none are stored, now or later. Order among batches, and with `publish`, is that of the calls.
        """

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Publish without any guarantee (core NATS). Never raises."""

    async def send(self, messages: Sequence[ForwardedRequest]) -> list[str | None]:
        """Publish core messages with their reply subjects, in order; at most 256 at once. Never raises.

        For each it returns None once the server has it and somebody listens (or no reply subject was given), or a sentence why not:
        `NO_RESPONDERS`, not connected, too large, a bad subject, no permission. A sentence with `may or may not have been sent` means
        that; any other, that nobody got the message. Returns within the publish timeout, and at once when the connection is lost.
        A stream that captures the subject listens too: its acknowledgement goes to `reply`, like any answer.
        """

    async def serve(self, service: Service, handler: Callable[[ServiceRequest], Awaitable[None]]) -> None:
        """Register the micro service. Requests are handled concurrently, each in its own task; `handler` must not raise."""

    async def stop_serving(self) -> None:
        """Deregister the service and wait for the requests in hand."""

    async def flush(self) -> None:
        """Push settlements and tells out, bounded by a short timeout. Never raises."""

    async def close(self) -> None:
        """Close the connection without draining. Idempotent; never raises."""
