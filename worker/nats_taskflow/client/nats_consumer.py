"""Read streams through pull consumers, and begin again where it broke, whatever happened to connection, broker or consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from secrets import token_hex
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.nats_permissions import Permissions
from nats_taskflow.client.nats_pull import PullBroken, next_subject, pulled
from nats_taskflow.client.transport import ConsumerMessage, Deliveries, Lost, Messages, TransportMessage

_PATIENCE = 5.0
_REWIND_WITHIN = 1.0  # nobody answers where the consumer does not exist yet, nor from older servers
_UNUSED_AFTER = 60.0
_BATCH = 256
_NS = 1_000_000_000


class ConsumerReader:
    """The consumers of one connection."""

    def __init__(self, client: Client, permissions: Permissions) -> None:
        self._client = client
        self._permissions = permissions
        self._up = asyncio.Event()

    def wake(self) -> None:
        """Let those who wait after a failure try again at once."""
        self._up.set()

    async def follow(self, subject: str, stream: str, after: int) -> Messages:
        """Read without acknowledging; each new consumer begins behind the last message that was given."""
        backoff = Backoff()
        while True:
            try:
                name = token_hex(8)
                await self._make(stream, _ephemeral(name, subject, after))
                async with aclosing(self._pulled(stream, name, _BATCH)) as messages:
                    async for message in messages:
                        seq = message.metadata.sequence.stream
                        if seq > after:
                            after = seq
                            yield _message(message, seq)
                        backoff.reset()
            except (PullBroken, NatsError, OSError, TimeoutError) as failed:
                await self._pause(backoff, failed)

    async def consume(self, subject: str, stream: str, durable: str, ack_wait: float, at_most: int) -> Deliveries:
        """Read and let be settled; before each new pull, what is in hand is delivered again, and so comes first and in order."""
        backoff = Backoff()
        missing = False
        while True:
            try:
                if missing:
                    await self._make(stream, _durable(durable, subject, ack_wait, at_most))
                missing = False
                await self._rewind(stream, durable)
                async with aclosing(self._pulled(stream, durable, at_most)) as messages:
                    async for message in messages:
                        backoff.reset()
                        yield _delivery(self._client, message)
            except (PullBroken, NatsError, OSError, TimeoutError) as failed:
                missing = isinstance(failed, PullBroken) and failed.gone
                await self._pause(backoff, failed)

    async def _pulled(self, stream: str, consumer: str, at_most: int) -> AsyncGenerator[Msg, None]:
        """Pull. Raises `NotPermitted` where the credentials may not: a forbidden pull request looks like silence otherwise."""
        try:
            async with aclosing(pulled(self._client, stream, consumer, at_most)) as messages:
                async for message in messages:
                    yield message
        except PullBroken:
            self._permissions.check(next_subject(stream, consumer))
            raise

    async def _make(self, stream: str, config: ConsumerConfig) -> None:
        """Make a consumer. Raises `NotPermitted`, or what nats-py raises."""
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.{config.name}.{config.filter_subject}"
        await self._permissions.needed(subject, self._client.jetstream(timeout=_PATIENCE).add_consumer(stream, config))

    async def _rewind(self, stream: str, consumer: str) -> None:
        """Have everything above the ack floor delivered again at once; where the broker cannot, it comes by itself after `ack_wait`."""
        try:
            await self._client.request(f"$JS.API.CONSUMER.RESET.{stream}.{consumer}", b"", timeout=_REWIND_WITHIN)
        except (NoRespondersError, TimeoutError):
            return  # an older server, or credentials that may not: the request was of no consequence

    async def _pause(self, backoff: Backoff, failed: BaseException) -> None:
        """Wait before the next try, at most until the connection is back. Raises `Lost` when it will not be."""
        if self._client.is_closed or isinstance(failed, ConnectionClosedError):
            raise Lost("the connection to NATS is closed") from failed
        if isinstance(failed, APIError) and failed.code == 400:  # noqa: PLR2004 - the broker understood, and says no
            raise Lost(f"the broker refuses the consumer: {failed.description}") from failed
        self._up.clear()
        try:
            async with asyncio.timeout(backoff.next()):
                await self._up.wait()
        except TimeoutError:
            return


def _ephemeral(name: str, subject: str, after: int) -> ConsumerConfig:
    """Describe a consumer that the broker forgets by itself."""
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
    """Describe a consumer that stays."""
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
    """Return a stream's message as the port has it."""
    return TransportMessage(subject=message.subject, body=message.data, headers=dict(message.headers or {}), seq=seq)


def _delivery(client: Client, message: Msg) -> ConsumerMessage:
    """Return a consumer's message as the port has it."""

    async def settle(how: bytes) -> None:
        """Tell the broker; where it cannot be told, the message comes again."""
        if client.is_closed:
            return
        try:
            await client.publish(message.reply, how)
        except (NatsError, OSError):
            return

    async def nak(delay: float) -> None:
        """Ask for it again, later."""
        await settle(b"-NAK " + msgspec.json.encode({"delay": int(delay * _NS)}))

    return ConsumerMessage(
        message=_message(message, message.metadata.sequence.stream),
        attempt=message.metadata.num_delivered,
        ack=lambda: settle(b"+ACK"),
        nak=nak,
        in_progress=lambda: settle(b"+WPI"),
    )
