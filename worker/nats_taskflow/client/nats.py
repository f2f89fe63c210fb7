"""The client's transport on nats-py; the promises are those of `transport`.

The connection is opened as the worker opens its own (`bus.nats`: options, dial, the patched client); `nats_reader` reads streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NoStreamResponseError

from nats_taskflow.bus.nats.client import PatchedClient
from nats_taskflow.bus.nats.denials import DenialListeners
from nats_taskflow.bus.nats.dial import close_now, dial
from nats_taskflow.bus.nats.options import NatsOptions, nats_options, read_denial, reason
from nats_taskflow.client import kv
from nats_taskflow.client.nats_reader import ConsumerReader, await_permitted
from nats_taskflow.client.transport import (
    NO_HEADERS,
    Deliveries,
    Headers,
    Inbox,
    Lost,
    Messages,
    NoAnswer,
    NotStored,
    PublishReceipt,
    Responder,
    TransportError,
    TransportMessage,
)
from nats_taskflow.errors import Refusal
from nats_taskflow.tasks import Errands
from nats_taskflow.wire.headers import MSG_ID, weight

_T = TypeVar("_T")
_RECONNECT_WAIT = 0.25


def options_for(where: str | None, **fields: Any) -> NatsOptions:
    """Return how to reach NATS.

    `where` is a URL (or several, comma separated), a context of the `nats` CLI, or None: as the settings say. The settings are those of the
    command line: environment, `taskflow.toml`, context. `fields` replace those of `NatsOptions`. Raises `Lost` with the sentence of the
    setting that cannot be right.
    """
    from nats_taskflow.config import load  # noqa: PLC0415 - a client that is given a connection needs no settings

    flags = {} if where is None else {"nats.url" if ":" in where or "." in where else "nats.context": where}
    try:
        options = nats_options(load(flags).nats)
    except Refusal as refusal:
        raise Lost(str(refusal)) from refusal
    return msgspec.structs.replace(options, **{name: value for name, value in fields.items() if value is not None})


class NatsTransport:
    """One NATS connection: opened by `connect`, or somebody's nats-py client.

    Somebody's client stays open, and what its credentials do not permit looks like silence: its error callback is not ours.
    """

    def __init__(self, client: Client, *, owned: bool = False) -> None:
        self._client = client
        self._owned = owned
        self._denials: DenialListeners = []
        self._errands = Errands()
        self._reader = ConsumerReader(client, self._denials)

    @classmethod
    async def connect(cls, where: str | None = None, **options: Any) -> Self:
        """Connect to a URL, a context of the `nats` CLI, or (None) as the settings say.

        `options` are fields of `NatsOptions`. Raises `Lost` with one sentence: unreachable within `connect_timeout`, refused credentials,
        settings that cannot be right.
        """
        return await cls.reach(options_for(where, **options))

    @classmethod
    async def reach(cls, options: NatsOptions) -> Self:
        """Connect as the options say, for a program that has read its own settings.

        Raises `Lost` as `connect` does.
        """
        client = PatchedClient()
        transport = cls(client, owned=True)
        try:
            await dial(client, options, transport._on_error, reconnect_wait=_RECONNECT_WAIT, reconnected_cb=transport._on_up)
        except Refusal as refusal:
            raise Lost(str(refusal)) from refusal
        return transport

    @property
    def max_payload(self) -> int:
        """The most bytes the broker takes in one message."""
        return int(self._client.max_payload)

    @property
    def lossless(self) -> bool:
        """False: what is published while the connection is down is missed."""
        return False

    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, timeout: float) -> TransportMessage:
        """Request, once."""
        if flaw := self._too_large(body, headers):
            raise NoAnswer(flaw, nobody=True)
        try:
            request = self._client.request(subject, body, timeout=timeout, headers=dict(headers) or None)
            return _message(await self._permitted(subject, request))
        except NoRespondersError:
            raise NoAnswer(f"nobody answers on {subject}", nobody=True) from None
        except ConnectionClosedError as closed:
            raise Lost("the connection to NATS is closed") from closed
        except (NatsError, OSError, TimeoutError) as failed:
            raise NoAnswer(f"no answer on {subject} within {timeout:g} s ({reason(failed)})") from failed

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, msg_id: str, timeout: float) -> PublishReceipt:
        """Publish into a stream, once."""
        headers = {**headers, MSG_ID: msg_id} if msg_id else dict(headers)
        if flaw := self._too_large(body, headers):
            raise NotStored(flaw, refused=True)
        try:
            publish = self._client.jetstream().publish(subject, body, timeout=timeout, headers=headers)
            ack = await self._permitted(subject, publish)
        except NoStreamResponseError:
            raise NotStored(f"no stream takes {subject}", refused=True) from None
        except APIError as refused:
            raise NotStored(f"the stream refused {subject}: {refused.description} ({refused.err_code})", refused=True) from refused
        except ConnectionClosedError as closed:
            raise Lost("the connection to NATS is closed") from closed
        except (NatsError, OSError, TimeoutError) as failed:
            raise NotStored(f"{subject} was not confirmed within {timeout:g} s ({reason(failed)})") from failed
        return PublishReceipt(ack.stream, ack.seq, bool(ack.duplicate))

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, reply: str = "") -> None:
        """Publish."""
        if flaw := self._too_large(body, headers):
            raise TransportError(flaw)
        try:
            await self._client.publish(subject, body, reply=reply, headers=dict(headers) or None)
        except (NatsError, OSError) as failed:
            raise TransportError(f"{subject} could not be written: {reason(failed)}") from failed

    def follow(self, subject: str, *, stream: str, after: int = 0) -> Messages:
        """Read a stream without acknowledgements.

        It uses ephemeral pull consumers, each beginning where the last one broke.
        """
        return self._reader.follow(subject, stream, after)

    def consume(self, subject: str, *, stream: str, durable: str, ack_wait: float = 30.0, at_most: int = 100) -> Deliveries:
        """Read a durable pull consumer."""
        return self._reader.consume(subject, stream, durable, ack_wait, at_most)

    async def open_bucket(self, bucket: str, *, keep: float, timeout: float) -> None:
        """Make a bucket where it is missing."""
        try:
            await self.recall(bucket, "is-it-there", timeout=timeout)
            return
        except NoAnswer as missing:
            if not missing.nobody:
                raise
        create = self._client.jetstream(timeout=timeout).create_key_value(bucket=bucket, ttl=keep)
        try:
            await self._permitted(f"$JS.API.STREAM.CREATE.{kv.stream_name(bucket)}", create)
        except ConnectionClosedError as closed:
            raise Lost("the connection to NATS is closed") from closed
        except (NatsError, OSError, TimeoutError) as failed:
            raise NoAnswer(f"the bucket {bucket} cannot be made ({reason(failed)})") from failed

    async def recall(self, bucket: str, key: str, *, timeout: float) -> bytes | None:
        """Read a key."""
        answer = await self.request(kv.read_subject(bucket), kv.read_request(bucket, key), timeout=timeout)
        return kv.read_value(answer.body, bucket)

    async def keep(self, bucket: str, key: str, value: bytes, *, timeout: float) -> None:
        """Write a key."""
        await self.publish(kv.key_subject(bucket, key), value, msg_id="", timeout=timeout)

    async def serve(self, subject: str, handler: Callable[[TransportMessage], Awaitable[None]], *, queue: str = "") -> Responder:
        """Subscribe."""

        async def take(message: Msg) -> None:
            # In a task: nats-py waits for the callback before it reads the next message.
            self._errands.start(_call(handler, _message(message)), subject)

        return _Subscription(self._client, await self._subscribe(subject, take, queue), subject)

    async def open_inbox(self, take: Callable[[TransportMessage], None]) -> Inbox:
        """Subscribe to everything below a new inbox."""

        async def hand_over(message: Msg) -> None:
            take(_message(message))

        inbox = self._client.new_inbox()
        return _Subscription(self._client, await self._subscribe(f"{inbox}.*", hand_over, ""), inbox)

    async def close(self) -> None:
        """Close the connection, unless it was given to us."""
        if self._owned and not self._client.is_closed:
            await close_now(self._client)

    async def _subscribe(self, subject: str, take: Callable[[Msg], Awaitable[None]], queue: str) -> Subscription:
        """Subscribe, and return once the server has read it without objecting."""
        try:
            subscription = await self._client.subscribe(subject, queue=queue, cb=take)
            try:
                await self._permitted(subject, self._flushed())
            except BaseException:
                # nats-py would subscribe again with every new connection.
                await _Subscription(self._client, subscription, subject).close()
                raise
        except ConnectionClosedError as closed:
            raise Lost("the connection to NATS is closed") from closed
        return subscription

    async def _flushed(self) -> None:
        """Return once the server has read everything written.

        While the connection is down, that is once it is back and has subscribed again.
        """
        while True:
            try:
                await self._client.flush()
                await self._client.flush()  # nats-py writes the first PING past its own buffer
                return
            except ConnectionClosedError:
                raise
            except (NatsError, OSError):
                await asyncio.sleep(0.1)

    async def _permitted(self, subject: str, work: Coroutine[Any, Any, _T]) -> _T:
        return await await_permitted(subject, work, self._denials)

    async def _on_error(self, error: Exception) -> None:
        """Notify the listeners of a missing permission.

        It must not raise, or nats-py stops reading.
        """
        if (missing := read_denial(str(error))) is not None:
            for listener in tuple(self._denials):
                listener(missing.subject)

    async def _on_up(self) -> None:
        self._reader.wake()

    def _too_large(self, body: bytes, headers: Headers) -> str:
        """Return why the message cannot be sent, or "".

        nats-py checks the body only. For a message that is too large with its headers the server would hang up for good.
        """
        size = len(body) + weight(headers)
        return f"the message has {size} bytes; the broker takes {self.max_payload}" if size > self.max_payload else ""


class _Subscription:
    """A subscription that can be closed."""

    def __init__(self, client: Client, subscription: Subscription, subject: str) -> None:
        self._client = client
        self._subscription = subscription
        self.subject = subject

    async def close(self) -> None:
        """Unsubscribe."""
        if self._client.is_closed:
            return
        try:
            await self._subscription.unsubscribe()
        except (NatsError, OSError, ValueError):
            return  # it has ended already


async def _call(handler: Callable[[TransportMessage], Awaitable[None]], message: TransportMessage) -> None:
    await handler(message)


def _message(message: Msg) -> TransportMessage:
    return TransportMessage(subject=message.subject, body=message.data, headers=dict(message.headers or {}), reply=message.reply or "")
