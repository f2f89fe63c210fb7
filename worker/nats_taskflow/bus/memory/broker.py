"""The broker in the process, behind `MemoryBus`.

A test kills a worker and starts the next one: connections end, the broker stays. Configurations are the JSON that JetStream takes, so the
same rules check both adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from nats_taskflow.bus import consumer_rules, filters, stream_rules
from nats_taskflow.bus.memory.stream import ConsumerState, StoredMessage, StreamStore, WireMessage
from nats_taskflow.bus.port import NO_HEADERS, NO_RESPONDERS, ConsumerSpec, ForwardedRequest, Published, PublishFailed
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.tasks import Errands
from nats_taskflow.wire.headers import Headers
from nats_taskflow.wire.subjects import covers


class CoreMessage(NamedTuple):
    """A core message. `reply` is the subject for an answer."""

    subject: str
    body: bytes
    headers: Headers
    reply: str = ""


class Subscriber(NamedTuple):
    """A subscription.

    `take` gets a message once, however many patterns cover it; in a `queue` group, one member gets it.
    """

    patterns: tuple[str, ...]
    take: Callable[[CoreMessage], None]
    queue: str = ""


class MemoryBroker:
    """Streams, consumers and subscriptions that outlive connections.

    `clock` returns microseconds since the epoch. After moving an injected clock, call `tick`: pulls then look for redeliveries.
    """

    def __init__(self, *, clock: Callable[[], int] | None = None) -> None:
        self.clock = clock or (lambda: time.time_ns() // 1000)
        self.streams: dict[str, StreamStore] = {}
        self.consumers: dict[tuple[str, str], ConsumerState] = {}
        self.wakers: list[Callable[[], None]] = []
        self.subscribers: list[Subscriber] = []

    def tick(self) -> None:
        """Have every pull look for deliveries."""
        for waker in tuple(self.wakers):
            waker()

    def create_stream(self, config: Json) -> StreamStore:
        """Create a stream from JetStream's JSON configuration."""
        self.streams[config["name"]] = StreamStore(config)
        return self.streams[config["name"]]

    def consumer(self, source: ConsumerSpec) -> ConsumerState:
        """Return the source's consumer.

        A missing one is created, and starts at the beginning of the stream.
        """
        key = (source.stream, source.consumer)
        if key not in self.consumers:
            stream = self.streams[source.stream]
            config = consumer_rules.consumer_config(source, filters.filters_for(source, stream.config.get("subjects") or ()))
            self.consumers[key] = self.make_consumer(stream, config)
        return self.consumers[key]

    def make_consumer(self, stream: StreamStore, config: Json) -> ConsumerState:
        """Make a consumer; the test kit overrides this."""
        return ConsumerState(stream, config)

    def client(self) -> MemoryClient:
        """Return an agent's connection."""
        return MemoryClient(self)

    def listeners(self, subject: str) -> list[Subscriber]:
        """Return the subscribers to a subject."""
        return [listener for listener in self.subscribers if any(covers(pattern, subject) for pattern in listener.patterns)]

    def _receivers(self, subject: str) -> list[Subscriber]:
        """Return the subscribers that get a message: one of each queue group, in turn."""
        receivers, groups = [], set()
        for listener in self.listeners(subject):
            if listener.queue in groups:
                continue
            if listener.queue:
                groups.add(listener.queue)
                self.subscribers.remove(listener)
                self.subscribers.append(listener)
            receivers.append(listener)
        return receivers

    def publish(self, subject: str, body: bytes, headers: Headers, reply: str = "") -> Published | None:
        """Deliver a message to its subscribers, and store it where a stream captures it.

        Raises `PublishFailed` when the stream is full.
        """
        # What nats-py does to header values on the way out.
        headers = {name: " ".join(value.strip().splitlines()) for name, value in headers.items()}
        for subscriber in self._receivers(subject):
            subscriber.take(CoreMessage(subject, body, headers, reply))
        for stream in self.streams.values():
            if stream.captures(subject):
                stored = stream.store(subject, body, headers, self.clock())
                self.tick()
                return stored
        return None

    def publish_all(self, messages: Sequence[WireMessage]) -> Published:
        """Store messages in the one stream that captures them, all or none.

        Raises `PublishFailed` where the stream takes no batches.
        """
        allowed = (stream for stream in self.streams.values() if stream.config.get(stream_rules.BATCHES))
        stream = next((stream for stream in allowed if all(stream.captures(message.subject) for message in messages)), None)
        if stream is None:
            raise PublishFailed(f"the stream of {messages[0].subject} does not allow atomic batches", refused=True)
        stream.check_room(messages)
        *_, last = [self.publish(*message) for message in messages]
        assert last is not None, "a stream takes it"
        return last

    def ask(self, message: ForwardedRequest) -> str | None:
        """Send a request. Returns why nobody got it, or None.

        A stream that captures it acknowledges on the reply subject.
        """
        reply = message.reply or ""
        captured = any(stream.captures(message.subject) for stream in self.streams.values())
        if reply and not captured and not self.listeners(message.subject):
            return NO_RESPONDERS
        try:
            stored = self.publish(message.subject, message.body, message.headers, reply)
            ack: Json | None = None if stored is None else {"stream": stored.stream, "seq": stored.seq}
        except PublishFailed as failed:
            ack = {"error": {"code": 503, "err_code": 10077, "description": str(failed)}, "stream": "", "seq": 0}
        if reply and ack is not None:
            with contextlib.suppress(PublishFailed):  # nobody acknowledges an acknowledgement
                self.publish(reply, msgspec.json.encode(ack), NO_HEADERS)
        return None


class MemoryClient:
    """An agent's connection to the broker in the process."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._inboxes = 0
        self._answers = Errands()

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> Published:
        """Publish into a stream.

        Raises `PublishFailed` where no stream captures the subject, or where it is full.
        """
        stored = self._broker.publish(subject, body, headers)
        if stored is None:
            raise PublishFailed(f"no stream takes {subject}", refused=True)
        return stored

    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, within: float = 5.0) -> tuple[bytes, Headers]:
        """Return body and headers of the first answer.

        Raises `ConnectionError` where nobody listens, `TimeoutError` where no answer comes.
        """
        listeners = self._broker.listeners(subject)
        self._inboxes += 1
        inbox = f"_INBOX.memory.{id(self)}.{self._inboxes}"
        answers = await self.subscribe(inbox)
        stored = self._broker.publish(subject, body, headers, inbox)
        if stored is not None:
            # A stream that captures the subject answers first, as on the server: that is why `api` exists beside `cmd`.
            return msgspec.json.encode({"stream": stored.stream, "seq": stored.seq}), NO_HEADERS
        if not listeners:
            raise ConnectionError(f"nobody answers on {subject}")
        async with asyncio.timeout(within):
            answer = await answers.get()
        return answer.body, answer.headers

    async def subscribe(self, pattern: str) -> asyncio.Queue[CoreMessage]:
        """Subscribe from now on."""
        queue: asyncio.Queue[CoreMessage] = asyncio.Queue()
        self._broker.subscribers.append(Subscriber((pattern,), queue.put_nowait))
        return queue

    async def respond_on(
        self, pattern: str, handler: Callable[[CoreMessage], Awaitable[bytes | None]], *, echo: bool = False
    ) -> Callable[[], Awaitable[None]]:
        """Answer requests as a delegate does. Returns a function that stops it.

        The answer is what `handler` returns (None: no answer). `echo`: the answer has the request's headers, as with nats-py's
        `Msg.respond`. After the stop, requests in hand are still answered.
        """

        async def answer(request: CoreMessage) -> None:
            body = await handler(request)
            if body is not None:
                await self.respond(request, body, request.headers if echo else NO_HEADERS)

        context = contextvars.copy_context()  # the delegate's own, never the caller's

        def take(request: CoreMessage) -> None:
            self._answers.start(answer(request), "delegate", context=context.copy())

        async def stop() -> None:
            self._broker.subscribers.remove(subscriber)

        subscriber = Subscriber((pattern,), take)
        self._broker.subscribers.append(subscriber)
        return stop

    async def respond(self, request: CoreMessage, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Answer on the request's reply subject, if it has one, without any guarantee."""
        if request.reply:
            with contextlib.suppress(PublishFailed):
                self._broker.publish(request.reply, body, headers)

    async def messages(self, stream: str) -> list[StoredMessage]:
        """Return the stream's messages, in order."""
        return list(self._broker.streams[stream].messages.values())
