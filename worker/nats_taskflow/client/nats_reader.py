"""Read streams through pull consumers, and go on where a pull broke.

The worker's pull (`bus.nats.pull`) keeps credit at a consumer that only it reads: what it loses comes again. Here most reads are not
acknowledged, so that a loss would stay one. A pull ends at the first doubt (silence, a consumer that is gone, a hole in its numbering), and
the next one begins where the last message was. It also runs on a nats-py client that somebody else has opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from secrets import token_hex
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from nats_taskflow.bus.nats.denials import DenialListeners, SubjectDenied, unless_denied
from nats_taskflow.bus.nats.frames import DESCRIPTION, STATUS
from nats_taskflow.bus.nats.pull_protocol import ACK, PullStatus, encode_settlement, next_subject, pull_request, read_status
from nats_taskflow.bus.port import Ack, InProgress, Nak, Settlement
from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.transport import ConsumerMessage, Deliveries, Lost, Messages, NotPermitted, TransportMessage

_T = TypeVar("_T")
_PATIENCE = 5.0
_REWIND_WITHIN = 1.0  # seconds; no answer comes from older servers, or while the consumer does not exist
_UNUSED_AFTER = 60.0
_BATCH = 256
_HEARTBEAT = 1.0
_EXPIRES = 30.0


class PullBroken(Exception):
    """The pull is over. `gone`: the consumer does not exist (any more)."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


async def await_permitted(subject: str, work: Coroutine[Any, Any, _T], denials: DenialListeners) -> _T:
    """Await `work`.

    Raises `NotPermitted` as soon as the server says that the credentials may not use the subject.
    """
    try:
        return await unless_denied(work, denials, subject.lower().__eq__)
    except SubjectDenied:
        raise NotPermitted(f"these credentials may not use {subject}") from None


class ConsumerReader:
    """Reads through the consumers of one connection.

    `denials`: the connection's listeners for missing permissions.
    """

    def __init__(self, client: Client, denials: DenialListeners) -> None:
        self._client = client
        self._denials = denials
        self._up = asyncio.Event()

    def wake(self) -> None:
        """Retry at once where a failure is being waited out."""
        self._up.set()

    async def follow(self, subject: str, stream: str, after: int) -> Messages:
        """Read without acknowledging; each new consumer begins behind the last message."""
        backoff = Backoff()
        while True:
            try:
                name = token_hex(8)
                await self._make(stream, _ephemeral(name, subject, after))
                async with aclosing(self._pull(stream, name, _BATCH)) as messages:
                    async for message in messages:
                        seq = message.metadata.sequence.stream
                        if seq > after:
                            after = seq
                            yield _message(message, seq)
                        backoff.reset()
            except (PullBroken, NatsError, OSError, TimeoutError) as failure:
                await self._pause(backoff, failure)

    async def consume(self, subject: str, stream: str, durable: str, ack_wait: float, at_most: int) -> Deliveries:
        """Read with acknowledgements.

        Before each new pull, what is in hand is delivered again, so that it comes first and in order.
        """
        backoff = Backoff()
        missing = False
        while True:
            try:
                if missing:
                    await self._make(stream, _durable(durable, subject, ack_wait, at_most))
                missing = False
                await self._rewind(stream, durable)
                async with aclosing(self._pull(stream, durable, at_most)) as messages:
                    async for message in messages:
                        backoff.reset()
                        yield _delivery(self._client, message)
            except (PullBroken, NatsError, OSError, TimeoutError) as failure:
                missing = isinstance(failure, PullBroken) and failure.gone
                await self._pause(backoff, failure)

    async def _pull(self, stream: str, consumer: str, at_most: int) -> AsyncGenerator[Msg, None]:
        """Yield a consumer's messages as they come, requesting `at_most` at a time.

        Raises `PullBroken`, `NotPermitted`, or what nats-py raises where the connection is closed.
        """
        inbox = self._client.new_inbox()
        queue: asyncio.Queue[Msg] = asyncio.Queue()

        async def take(message: Msg) -> None:
            queue.put_nowait(message)  # bounded by what was asked for

        subject = next_subject(stream, consumer)
        subscription = await self._client.subscribe(f"{inbox}.*", cb=take, pending_msgs_limit=0, pending_bytes_limit=0)
        request = left = consumed = 0
        try:
            while True:
                if left <= 0:
                    request, left = request + 1, at_most
                    body = pull_request(at_most, expires=_EXPIRES, heartbeat=_HEARTBEAT)
                    await self._client.publish(subject, body, reply=f"{inbox}.{request}")
                message = await self._next(queue, subject)
                if message.reply.startswith(ACK.decode()):
                    number = message.metadata.sequence.consumer
                    if consumed and number != consumed + 1:
                        raise PullBroken(f"consumer {consumer}: delivery {consumed + 1} is missing")
                    left, consumed = left - 1, number
                    yield message
                elif message.subject == f"{inbox}.{request}" and _is_over(message, consumer):
                    left = 0
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def _next(self, queue: asyncio.Queue[Msg], subject: str) -> Msg:
        """Return the next message.

        Raises `PullBroken` when two heartbeats are missed, `NotPermitted`.
        """
        if not queue.empty():
            return queue.get_nowait()
        try:
            async with asyncio.timeout(2 * _HEARTBEAT + 0.5):
                return await await_permitted(subject, queue.get(), self._denials)
        except TimeoutError:
            raise PullBroken("no message and no heartbeat") from None

    async def _make(self, stream: str, config: ConsumerConfig) -> None:
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.{config.name}.{config.filter_subject}"
        await await_permitted(subject, self._client.jetstream(timeout=_PATIENCE).add_consumer(stream, config), self._denials)

    async def _rewind(self, stream: str, consumer: str) -> None:
        """Have everything above the ack floor delivered again at once.

        Where the broker cannot do so, it comes by itself after `ack_wait`.
        """
        try:
            await self._client.request(f"$JS.API.CONSUMER.RESET.{stream}.{consumer}", b"", timeout=_REWIND_WITHIN)
        except (NoRespondersError, TimeoutError):
            return  # an older server, or missing permission: nothing has happened

    async def _pause(self, backoff: Backoff, failure: BaseException) -> None:
        """Wait before the next try, at most until the connection is back.

        Raises `Lost` when it will not be.
        """
        if self._client.is_closed or isinstance(failure, ConnectionClosedError):
            raise Lost("the connection to NATS is closed") from failure
        if isinstance(failure, APIError) and failure.code == 400:  # noqa: PLR2004 - the broker understood, and says no
            raise Lost(f"the broker refuses the consumer: {failure.description}") from failure
        self._up.clear()
        try:
            async with asyncio.timeout(backoff.next()):
                await self._up.wait()
        except TimeoutError:
            return


def _is_over(message: Msg, consumer: str) -> bool:
    """Check whether a status ends the request in the ordinary way.

    Raises `PullBroken` for any other but a heartbeat.
    """
    headers = message.headers or {}
    status = read_status(headers)
    if status in (PullStatus.MISSING, PullStatus.REFUSED):
        reason = f"consumer {consumer}: {headers.get(STATUS, '')} {headers.get(DESCRIPTION, '')}"
        raise PullBroken(reason, gone=status is PullStatus.MISSING)
    return status is not PullStatus.ALIVE


def _ephemeral(name: str, subject: str, after: int) -> ConsumerConfig:
    """Return the configuration of a consumer that the broker forgets by itself."""
    start: dict[str, Any] = {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": after + 1} if after else {}
    return ConsumerConfig(
        name=name,
        filter_subject=subject,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=_UNUSED_AFTER,
        mem_storage=True,
        num_replicas=1,
        **start,
    )


def _durable(name: str, subject: str, ack_wait: float, at_most: int) -> ConsumerConfig:
    """Return the configuration of a consumer that stays."""
    return ConsumerConfig(
        name=name,
        durable_name=name,
        filter_subject=subject,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_ack_pending=at_most,
        max_deliver=-1,
    )


def _message(message: Msg, seq: int) -> TransportMessage:
    return TransportMessage(subject=message.subject, body=message.data, headers=dict(message.headers or {}), seq=seq)


def _delivery(client: Client, message: Msg) -> ConsumerMessage:
    """Convert a consumer's message."""

    async def settle(settlement: Settlement) -> None:
        """Publish a settlement. Where it gets lost, the message comes again."""
        if client.is_closed:
            return
        try:
            await client.publish(message.reply, encode_settlement(settlement))
        except (NatsError, OSError):
            return

    return ConsumerMessage(
        message=_message(message, message.metadata.sequence.stream),
        attempt=message.metadata.num_delivered,
        ack=lambda: settle(Ack()),
        nak=lambda delay: settle(Nak(delay)),
        in_progress=lambda: settle(InProgress()),
    )
