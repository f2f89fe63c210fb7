"""The client's port in memory.

`FlowClient`, agents and delegates run on it as they do on NATS.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec

from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker, Subscriber
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.port import Ack, ConsumerSpec, InProgress, Nak, PublishFailed, Settlement
from nats_taskflow.bus.port import Delivery as Delivered
from nats_taskflow.client import kv
from nats_taskflow.client.transport import (
    NO_HEADERS,
    ConsumerMessage,
    Headers,
    Lost,
    NoAnswer,
    NotStored,
    PublishReceipt,
    TransportError,
    TransportMessage,
)
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.subjects import covers

_MAX_PAYLOAD = 1024 * 1024
_NS = 1_000_000_000


class MemorySubscription:
    """A subscription: an inbox, or a responder."""

    def __init__(self, transport: MemoryTransport, subject: str, subscriber: Subscriber) -> None:
        self._transport = transport
        self.subject = subject
        self._subscriber = subscriber

    async def close(self) -> None:
        """Stop listening."""
        self._transport.forget(self._subscriber)


class MemoryTransport:
    """An agent's connection to a broker in memory.

    `disturbed` returns whether the acknowledgement of a publish gets lost this time.
    """

    def __init__(self, broker: MemoryBroker, *, disturbed: Callable[[], bool] = lambda: False) -> None:
        self._broker = broker
        self._disturbed = disturbed
        self._subscribers: list[Subscriber] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._more: set[asyncio.Event] = set()
        self._closed = asyncio.Event()

    @property
    def max_payload(self) -> int:
        """The most bytes in one message."""
        return _MAX_PAYLOAD

    @property
    def lossless(self) -> bool:
        """Always True: no network lies between."""
        return True

    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, timeout: float) -> TransportMessage:
        """Send a request, and return the first answer.

        Raises `NoAnswer` when nobody listens, and when none comes within `timeout` seconds.
        """
        self._check_open()
        if flaw := objection(subject, body, headers, _MAX_PAYLOAD):
            raise NoAnswer(flaw, nobody=True)
        answer: asyncio.Future[TransportMessage] = asyncio.get_running_loop().create_future()

        def take(message: TransportMessage) -> None:
            if not answer.done():
                answer.set_result(message)

        inbox = await self.open_inbox(take)
        try:
            listens = bool(self._broker.listeners(subject))
            stored = self._published(subject, body, headers, f"{inbox.subject}.1")
            if stored is not None:
                take(TransportMessage(subject=inbox.subject, body=msgspec.json.encode({"stream": stored.stream, "seq": stored.seq})))
            elif not listens:
                raise NoAnswer(f"nobody answers on {subject}", nobody=True)
            async with asyncio.timeout(timeout):
                return await self._unless_closed(answer)
        except TimeoutError as late:
            raise NoAnswer(f"no answer on {subject} within {timeout:g} s") from late
        finally:
            await inbox.close()

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, msg_id: str, timeout: float) -> PublishReceipt:  # noqa: ARG002  it is answered at once
        """Store a message in the stream that captures the subject.

        Raises `NotStored` where it is refused or its acknowledgement gets lost.
        """
        self._check_open()
        stamped = {**headers, MSG_ID: msg_id} if msg_id else dict(headers)
        if flaw := objection(subject, body, stamped, _MAX_PAYLOAD):
            raise NotStored(flaw, refused=True)
        try:
            stored = self._broker.publish(subject, body, stamped)
        except PublishFailed as failed:
            raise NotStored(str(failed), refused=failed.refused) from failed
        if stored is None:
            raise NotStored(f"no stream takes {subject}", refused=True)
        if self._disturbed():
            raise NotStored(f"the acknowledgement of a message on {subject} got lost")
        await asyncio.sleep(0)
        return PublishReceipt(stored.stream, stored.seq, stored.duplicate)

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, reply: str = "") -> None:
        """Publish without any guarantee."""
        self._check_open()
        if flaw := objection(subject, body, headers, _MAX_PAYLOAD):
            raise TransportError(flaw)
        self._published(subject, body, headers, reply)

    async def follow(self, subject: str, *, stream: str, after: int = 0) -> AsyncGenerator[TransportMessage, None]:
        """Yield the messages of a stream, from history and then live."""
        async with contextlib.aclosing(self._turns()) as turns:
            async for _ in turns:
                has = self._broker.streams.get(stream)
                for stored in list(has.messages.values()) if has is not None else ():
                    if stored.seq > after and covers(subject, stored.subject):
                        after = stored.seq
                        yield TransportMessage(subject=stored.subject, body=stored.body, headers=stored.headers, seq=stored.seq)

    async def consume(
        self, subject: str, *, stream: str, durable: str, ack_wait: float = 30.0, at_most: int = 100
    ) -> AsyncGenerator[ConsumerMessage, None]:
        """Yield the deliveries of a durable consumer.

        What an earlier reader had in hand comes first.
        """
        source = ConsumerSpec(stream=stream, consumer=durable, filters=(subject,), ack_wait=ack_wait, max_ack_pending=at_most)
        resumed = False
        async with contextlib.aclosing(self._turns()) as turns:
            async for _ in turns:
                if stream not in self._broker.streams:
                    continue
                consumer = self._broker.consumer(source)
                if not resumed:
                    resumed = True
                    consumer.rewind()
                while (delivered := consumer.deliver(self._broker.clock())) is not None:
                    yield self._in_hand(source, delivered)

    async def open_bucket(self, bucket: str, *, keep: float, timeout: float) -> None:  # noqa: ARG002  it is there at once
        """Create a bucket, unless it exists; values stay for `keep` seconds."""
        self._check_open()
        name = kv.stream_name(bucket)
        if name not in self._broker.streams:
            self._broker.create_stream(
                {
                    "name": name,
                    "subjects": [kv.key_subject(bucket, ">")],
                    "max_age": int(keep * _NS),
                    "duplicate_window": 120 * _NS,
                    "discard": "new",
                }
            )

    async def recall(self, bucket: str, key: str, *, timeout: float) -> bytes | None:  # noqa: ARG002  it is answered at once
        """Read a key; None where it has no value."""
        self._check_open()
        stream = self._broker.streams.get(kv.stream_name(bucket))
        if stream is None:
            raise NoAnswer(f"there is no bucket {bucket}", nobody=True)
        subject = kv.key_subject(bucket, key)
        return next((stored.body for stored in reversed(stream.messages.values()) if stored.subject == subject), None)

    async def keep(self, bucket: str, key: str, value: bytes, *, timeout: float) -> None:
        """Write a key."""
        await self.publish(kv.key_subject(bucket, key), value, msg_id="", timeout=timeout)

    async def serve(self, subject: str, handler: Callable[[TransportMessage], Awaitable[None]], *, queue: str = "") -> MemorySubscription:
        """Call `handler` for each message, each in a task of its own."""
        context = contextvars.copy_context()  # its own, whoever publishes

        def take(heard: CoreMessage) -> None:
            task = asyncio.get_running_loop().create_task(_handled(handler, _message(heard)), context=context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return self._listen(subject, Subscriber((subject,), take, queue))

    async def open_inbox(self, take: Callable[[TransportMessage], None]) -> MemorySubscription:
        """Subscribe to a private subject, for answers."""
        subject = f"_INBOX.{secrets.token_hex(11)}"
        context = contextvars.copy_context()
        return self._listen(subject, Subscriber((f"{subject}.*",), lambda heard: context.copy().run(take, _message(heard))))

    async def close(self) -> None:
        """Close the connection. Pending calls raise `Lost`."""
        self._closed.set()
        for event in self._more:
            event.set()
        for subscriber in tuple(self._subscribers):
            self.forget(subscriber)

    def forget(self, subscriber: Subscriber) -> None:
        """Remove a subscriber."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
            self._broker.subscribers.remove(subscriber)

    def _listen(self, subject: str, subscriber: Subscriber) -> MemorySubscription:
        """Subscribe. Raises `Lost` once closed."""
        self._check_open()
        self._subscribers.append(subscriber)
        self._broker.subscribers.append(subscriber)
        return MemorySubscription(self, subject, subscriber)

    def _published(self, subject: str, body: bytes, headers: Headers, reply: str) -> Any:
        """Publish on core NATS.

        A stream that captures the subject stores the message too, unless it is full.
        """
        with contextlib.suppress(PublishFailed):
            return self._broker.publish(subject, body, headers, reply)
        return None

    def _in_hand(self, source: ConsumerSpec, delivered: Delivered) -> ConsumerMessage:
        """Wrap a delivery, with the calls that settle it."""
        message = TransportMessage(subject=delivered.subject, body=delivered.body, headers=delivered.headers, seq=delivered.seq)

        async def settle(settlement: Settlement) -> None:
            self._broker.consumer(source).settle(delivered.seq, settlement, self._broker.clock())
            self._broker.tick()

        return ConsumerMessage(
            message=message,
            attempt=delivered.attempt,
            ack=lambda: settle(Ack()),
            nak=lambda delay: settle(Nak(delay)),
            in_progress=lambda: settle(InProgress()),
        )

    async def _turns(self) -> AsyncGenerator[None, None]:
        """Yield now, and whenever the broker has news or its clock was moved.

        Raises `Lost` once closed.
        """
        more = asyncio.Event()
        self._more.add(more)
        self._broker.wakers.append(more.set)
        try:
            while True:
                self._check_open()
                more.clear()
                yield
                await more.wait()
        finally:
            self._more.discard(more)
            self._broker.wakers.remove(more.set)

    async def _unless_closed(self, answer: asyncio.Future[TransportMessage]) -> TransportMessage:
        """Return the answer.

        Raises `Lost` when the connection is closed before it comes.
        """
        closed = asyncio.ensure_future(self._closed.wait())
        ends: set[asyncio.Future[Any]] = {answer, closed}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self._check_open()
            return answer.result()
        finally:
            closed.cancel()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise Lost("the connection is closed")


async def _handled(handler: Callable[[TransportMessage], Awaitable[None]], message: TransportMessage) -> None:
    await handler(message)


def _message(heard: CoreMessage) -> TransportMessage:
    return TransportMessage(subject=heard.subject, body=heard.body, headers=heard.headers, reply=heard.reply)
