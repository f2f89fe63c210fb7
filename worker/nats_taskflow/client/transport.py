"""The client's port: what it needs of a broker, with every promise written down.

Adapters: `nats_taskflow.client.nats` (nats-py) and the test kit's, in memory. Nothing of nats-py shows here, and nothing of
flows: subjects, headers and bytes only. Times are seconds. Every method is called from the event loop's thread only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

Headers = Mapping[str, str]
NO_HEADERS: Headers = {}


class TransportMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message.

    `reply` is its NATS reply subject ("" for none); `seq` its place in the stream it was read from, 0 elsewhere.
    """

    subject: str
    body: bytes
    headers: Headers = NO_HEADERS
    reply: str = ""
    seq: int = 0


class ConsumerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a durable consumer, which stays in hand until it is settled.

    `attempt` counts its deliveries from 1. The three calls never raise: a settlement that is lost ends in a redelivery. `ack`: never
    deliver it again. `nak(delay)`: again after `delay` seconds. `in_progress`: still at work, restart the redelivery timer.
    """

    message: TransportMessage
    attempt: int
    ack: Callable[[], Awaitable[None]]
    nak: Callable[[float], Awaitable[None]]
    in_progress: Callable[[], Awaitable[None]]


Deliveries = AsyncGenerator[ConsumerMessage, None]
Messages = AsyncGenerator[TransportMessage, None]


class PublishReceipt(msgspec.Struct, frozen=True):
    """The broker has stored the message.

    `duplicate`: it had one under this id already, and has not looked at this body.
    """

    stream: str
    seq: int
    duplicate: bool = False


class TransportError(Exception):
    """The broker, or whoever should answer, did not do it; one sentence says why."""


class NoAnswer(TransportError):
    """No answer came.

    `nobody`: nobody listens, so nothing was done; else it may have been.
    """

    def __init__(self, message: str, *, nobody: bool = False) -> None:
        super().__init__(message)
        self.nobody = nobody


class NotStored(TransportError):
    """The broker did not confirm.

    `refused`: it said no, and the message is not stored. Otherwise it may be: repeat with the same id.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class NotPermitted(TransportError):
    """The credentials do not permit it: a retry will not help."""


class Lost(TransportError):
    """There is no connection, and none will come back: refused credentials, or closed."""


class Inbox(Protocol):
    """A private address. Whatever is published on `<subject>.<one token>` reaches it."""

    @property
    def subject(self) -> str:
        """The inbox's own subject, unguessable; append `.` and a token of your own."""

    async def close(self) -> None:
        """Stop listening. Idempotent; never raises."""


class Responder(Protocol):
    """A subscription whose handler answers."""

    async def close(self) -> None:
        """Take no more requests; those in hand finish. Idempotent; never raises."""


@runtime_checkable
class Transport(Protocol):
    """A broker connection that comes back after every outage, until it is closed."""

    @property
    def max_payload(self) -> int:
        """The most bytes (headers and body) the broker takes in one message."""

    @property
    def lossless(self) -> bool:
        """Whether a subscription never misses a message: then nobody has to poll besides."""

    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, timeout: float) -> TransportMessage:
        """Request, and return the first answer.

        Raises `NoAnswer` within `timeout` seconds, also while the connection is down; `NotPermitted`; `Lost`. Does not retry: that is the
        caller's business.
        """

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, msg_id: str, timeout: float) -> PublishReceipt:
        """Publish into the stream that captures the subject; await its acknowledgement.

        The id is `Nats-Msg-Id: msg_id`. A repeat with the same id within the stream's duplicate window is not stored twice, whatever its
        body, and whoever used the id first. Without an id ("") every message is stored. Raises `NotStored` within `timeout` seconds, also
        while the connection is down (then it may still be sent later: hence the id); `NotPermitted`; `Lost`.
        """

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, reply: str = "") -> None:
        """Publish without any guarantee (core NATS).

        `reply` is the reply subject. Raises `TransportError` where it cannot be written.
        """

    def follow(self, subject: str, *, stream: str, after: int = 0) -> Messages:
        """Yield the messages of a stream that match `subject`, stored and then live.

        Wildcards are allowed. Starts behind stream sequence `after` (0: with the oldest that is kept). Each message once, in stream order,
        with its `seq`; goes on after a broken connection, a restarted broker and a deleted consumer where it was. A stream that is not
        there yet is waited for. Ends only by closing (`aclose`), or by raising `NotPermitted` or `Lost`. Nothing is acknowledged; nothing
        stays behind.
        """

    def consume(self, subject: str, *, stream: str, durable: str, ack_wait: float = 30.0, at_most: int = 100) -> Deliveries:
        """Yield the deliveries of a durable pull consumer, made where it is missing.

        It is called `durable`, on `stream`, filtered by `subject`. Explicit acknowledgement: what is not settled within `ack_wait` seconds
        is delivered again, for ever. At most `at_most` are in hand. A consumer that starts again after a crash gets what was in hand first,
        in stream order, at once where the broker can do so (nats-server 2.12 and later, and permitted), after `ack_wait` elsewhere. The
        consumer must have no other reader. Goes on as `follow` does, and ends like it; the consumer stays. A delivery may repeat.
        """

    async def open_bucket(self, bucket: str, *, keep: float, timeout: float) -> None:
        """Make a key-value bucket where it is missing; it keeps values for `keep` seconds.

        Raises `NoAnswer` within `timeout` seconds for each thing that is asked, `NotPermitted`, `Lost`.
        """

    async def recall(self, bucket: str, key: str, *, timeout: float) -> bytes | None:
        """Return the last value under a key of a bucket, None where there is none.

        Raises as `request` does, with `nobody` where there is no bucket.
        """

    async def keep(self, bucket: str, key: str, value: bytes, *, timeout: float) -> None:
        """Put a value under a key of a bucket, and return once it is stored.

        Raises as `publish` does.
        """

    async def serve(self, subject: str, handler: Callable[[TransportMessage], Awaitable[None]], *, queue: str = "") -> Responder:
        """Call `handler` for each message on `subject`, each in a task of its own.

        With `queue`, one member of the group gets it. Returns once the broker knows. The handler answers with `tell` or `publish` on
        `message.reply`, and must not raise. Raises `NotPermitted`, `Lost`.
        """

    async def open_inbox(self, take: Callable[[TransportMessage], None]) -> Inbox:
        """Open a private address.

        `take` is called on the loop for each message, and must not raise or block. Messages published while the connection is down are
        missed. Raises `NotPermitted`, `Lost`.
        """

    async def close(self) -> None:
        """Close the connection, unless it was given.

        What waits in the other methods raises `Lost`. Idempotent; never raises.
        """
