"""Keep streams, consumers and subscriptions in the process: the broker behind `memory.MemoryBus`.

Connections come and go, the broker stays: that is how a test kills a worker and starts the next one. Configurations are the same
JSON that JetStream takes, so both adapters are checked by the same rules.
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
from nats_taskflow.bus.port import NO_HEADERS, NO_RESPONDERS, ConsumerSpec, ForwardedRequest, Headers, Published, PublishFailed
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.tasks import Errands
from nats_taskflow.wire.subjects import covers


class CoreMessage(NamedTuple):
    """A core message as a subscriber gets it; `reply` is where an answer goes."""

    subject: str
    body: bytes
    headers: Headers
    reply: str = ""


class Subscriber(NamedTuple):
    """Who listens: `take` gets each message once, however many of the patterns cover it; of a `queue` group, one member gets it."""

    patterns: tuple[str, ...]
    take: Callable[[CoreMessage], None]
    queue: str = ""


class MemoryBroker:
    """Streams, consumers and subscriptions that outlive connections. `clock` returns microseconds since the epoch.

    After moving an injected clock, call `tick`: pulls then look for redeliveries.
    """

    def __init__(self, *, clock: Callable[[], int] | None = None) -> None:
        self.clock = clock or (lambda: time.time_ns() // 1000)
        self.streams: dict[str, StreamStore] = {}
        self.consumers: dict[tuple[str, str], ConsumerState] = {}
        self.wakers: list[Callable[[], None]] = []
        self.subscribers: list[Subscriber] = []

    def tick(self) -> None:
        """Make every pull look again."""
        for waker in tuple(self.wakers):
            waker()

    def create_stream(self, config: Json) -> StreamStore:
        """Make a stream from JetStream's JSON configuration."""
        self.streams[config["name"]] = StreamStore(config)
        return self.streams[config["name"]]

    def consumer(self, source: ConsumerSpec) -> ConsumerState:
        """Return the source's consumer, made if need be (a deleted one is made again and starts at the beginning)."""
        key = (source.stream, source.consumer)
        if key not in self.consumers:
            stream = self.streams[source.stream]
            asked = filters.filters_for(source, stream.config.get("subjects") or ())
            self.consumers[key] = self.make_consumer(stream, consumer_rules.consumer_config(source, asked))
        return self.consumers[key]

    def make_consumer(self, stream: StreamStore, config: Json) -> ConsumerState:
        """Make a consumer."""
        return ConsumerState(stream, config)

    def client(self) -> MemoryClient:
        """Return an agent's connection."""
        return MemoryClient(self)

    def listeners(self, subject: str) -> list[Subscriber]:
        """Return who listens on a subject."""
        return [one for one in self.subscribers if any(covers(pattern, subject) for pattern in one.patterns)]

    def _chosen(self, subject: str) -> list[Subscriber]:
        """Return who gets a message: of each queue group one, by turns."""
        chosen, groups = [], set()
        for one in self.listeners(subject):
            if one.queue in groups:
                continue
            if one.queue:
                groups.add(one.queue)
                self.subscribers.remove(one)
                self.subscribers.append(one)
            chosen.append(one)
        return chosen

    def publish(self, subject: str, body: bytes, headers: Headers, reply: str = "") -> Published | None:
        """Give a message to whoever subscribed and to the stream that captures it; raises `PublishFailed` when that is full."""
        # What nats-py does to header values on the way out.
        headers = {name: " ".join(value.strip().splitlines()) for name, value in headers.items()}
        for subscriber in self._chosen(subject):
            subscriber.take(CoreMessage(subject, body, headers, reply))
        for stream in self.streams.values():
            if stream.captures(subject):
                stored = stream.store(subject, body, headers, self.clock())
                self.tick()
                return stored
        return None

    def publish_all(self, messages: Sequence[WireMessage]) -> Published:
        """Give messages to the one stream that captures them, all or none; raises `PublishFailed` where that takes none together."""
        streams = [stream for stream in self.streams.values() if stream.captures(messages[0][0])]
        if (
            not streams
            or not streams[0].config.get(stream_rules.BATCHES)
            or not all(streams[0].captures(subject) for subject, _, _ in messages)
        ):
            raise PublishFailed(f"the stream of {messages[0][0]} does not allow atomic batches", refused=True)
        streams[0].check_room(messages)
        *_, last = [self.publish(*message) for message in messages]
        assert last is not None, "a stream takes it"
        return last

    def ask(self, message: ForwardedRequest) -> str | None:
        """Give a request to whoever listens; a stream that captures it acknowledges on the reply subject. Or say that nobody does."""
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
    """An agent's connection: publish like one, ask like one, listen like one, answer like one."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._inboxes = 0
        self._answering = Errands()

    async def publish(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> Published:
        """Publish into a stream; raises `PublishFailed` where none takes the subject, or it is full."""
        stored = self._broker.publish(subject, body, headers)
        if stored is None:
            raise PublishFailed(f"no stream takes {subject}", refused=True)
        return stored

    async def request(self, subject: str, body: bytes, headers: Headers = NO_HEADERS, *, within: float = 5.0) -> tuple[bytes, Headers]:
        """Ask and return the first answer's body and headers; raises `ConnectionError` where nobody listens, or TimeoutError."""
        listening = self._broker.listeners(subject)
        self._inboxes += 1
        inbox = f"_INBOX.memory.{id(self)}.{self._inboxes}"
        answers = await self.subscribe(inbox)
        stored = self._broker.publish(subject, body, headers, inbox)
        if stored is not None:
            # A stream that captures the subject answers first, as on the server: that is why `api` exists beside `cmd`.
            return msgspec.json.encode({"stream": stored.stream, "seq": stored.seq}), NO_HEADERS
        if not listening:
            raise ConnectionError(f"nobody answers on {subject}")
        async with asyncio.timeout(within):
            heard = await answers.get()
        return heard.body, heard.headers

    async def subscribe(self, pattern: str) -> asyncio.Queue[CoreMessage]:
        """Listen from now on."""
        queue: asyncio.Queue[CoreMessage] = asyncio.Queue()
        self._broker.subscribers.append(Subscriber((pattern,), queue.put_nowait))
        return queue

    async def respond_on(
        self, pattern: str, handler: Callable[[CoreMessage], Awaitable[bytes | None]], *, echo: bool = False
    ) -> Callable[[], Awaitable[None]]:
        """Play a delegate: answer what comes with what `handler` returns (None: not at all). Returns what to call to stop listening.

        `echo`: the answer has the request's headers, as with nats-py's `Msg.respond`.
        """

        async def answer(heard: CoreMessage) -> None:
            """Handle one request."""
            body = await handler(heard)
            if body is not None:
                await self.respond(heard, body, heard.headers if echo else NO_HEADERS)

        context = contextvars.copy_context()  # the delegate's own, whoever asks it

        def take(heard: CoreMessage) -> None:
            """Hand a request to its own task."""
            self._answering.start(answer(heard), "delegate", context=context.copy())

        async def stop() -> None:
            """Stop listening; what is in hand is still answered."""
            self._broker.subscribers.remove(subscriber)

        subscriber = Subscriber((pattern,), take)
        self._broker.subscribers.append(subscriber)
        return stop

    async def respond(self, heard: CoreMessage, body: bytes, headers: Headers = NO_HEADERS) -> None:
        """Answer on the reply subject, without any guarantee; where none was given nobody waits."""
        if heard.reply:
            with contextlib.suppress(PublishFailed):
                self._broker.publish(heard.reply, body, headers)

    async def messages(self, stream: str) -> list[StoredMessage]:
        """Return what the stream holds, in order."""
        return list(self._broker.streams[stream].messages.values())
