"""Ask, publish, listen and read streams: NATS for people's commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from nats_taskflow.bus import consumer_rules, filters, stream_rules
from nats_taskflow.bus.nats.connection import ApiTimeout, NatsConnection, NatsOptions
from nats_taskflow.bus.port import ConsumerSpec, Published, StreamSpec
from nats_taskflow.errors import BusLost, NotAllowed
from nats_taskflow.wire.headers import Headers

if TYPE_CHECKING:
    from nats.js import JetStreamContext

# nats-py's JetStream is as large as all the rest of it, and only some commands need it: imported where it is used.
_CONNECT_TIMEOUT_MAX = 1.5
_PATIENCE = 5.0
_READ_AT_ONCE, _READ_PATIENCE = 256, 10.0


class StreamMessage(msgspec.Struct, frozen=True):
    """A message in a stream; `seq` is its place.

    0: it was heard, not read from the stream.
    """

    seq: int
    subject: str
    headers: Headers
    body: bytes


class NoWorkerAnswer(Exception):
    """Nobody answered. `late`: somebody may be there, and may have done it."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class InspectClient:
    """A short-lived connection. It gives up soon, since a person waits."""

    def __init__(self, options: NatsOptions) -> None:
        timeout = min(options.connect_timeout, _CONNECT_TIMEOUT_MAX)
        self._connection = NatsConnection(msgspec.structs.replace(options, connect_timeout=timeout, name="taskflow-cli"))

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._connection.close()

    @property
    def address(self) -> str:
        """The server it is connected to, without credentials."""
        return self._connection.address

    @property
    def max_payload(self) -> int:
        """The most bytes the broker takes in one message."""
        return self._connection.max_payload

    @property
    def server_version(self) -> str:
        """The server's version."""
        version = self._connection.client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"  # its str is a repr in angle brackets

    async def round_trip(self) -> float:
        """Return the time of a round trip to the server, in seconds."""
        return float(await self._connection.client.rtt())

    async def ask(self, subject: str, body: bytes, *, within: float = _PATIENCE) -> bytes:
        """Send a request. Raises `NoWorkerAnswer`, or `NotAllowed` without permission."""
        try:
            return await self._connection.unless_denied(self._connection.ask(subject, body, within=within), subject)
        except ApiTimeout as silent:
            raise NoWorkerAnswer(str(silent), late=silent.late) from silent

    async def all_answers(self, subject: str, *, within: float) -> list[bytes]:
        """Send a request; return every answer that comes `within` seconds."""
        client, answers = self._connection.client, list[bytes]()

        async def take(message: Msg) -> None:
            if message.data:  # an empty one is the server's: nobody is there
                answers.append(message.data)

        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=take)
        await client.publish(subject, b"", reply=inbox)
        await asyncio.sleep(within)
        await subscription.unsubscribe()
        return answers

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> Published:
        """Publish into a stream. Raises `NoWorkerAnswer` if none confirms, `NotAllowed`."""
        from nats.js.errors import NoStreamResponseError  # noqa: PLC0415

        publish = self._connection.client.jetstream(timeout=_PATIENCE).publish(subject, body, headers=dict(headers))
        try:
            stored = await self._connection.unless_denied(publish, subject)
        except NoStreamResponseError as nobody:
            raise _not_taken(subject) from nobody
        except (NatsError, OSError) as bad:
            why = str(bad).removeprefix("nats: ") or "no answer"
            raise NoWorkerAnswer(f"{subject} was not confirmed ({why})", late=True) from bad
        return Published(stored.stream, stored.seq, bool(stored.duplicate))

    async def check_taken(self, subject: str) -> None:
        """Raise `NoWorkerAnswer` where no stream captures the subject. Publishes nothing."""
        answer: dict[str, Any] = msgspec.json.decode(await self.ask("$JS.API.STREAM.NAMES", msgspec.json.encode({"subject": subject})))
        if "error" in answer:
            raise NoWorkerAnswer(f"who takes {subject} is not known: {answer['error'].get('description', 'no answer')}")
        if not answer.get("streams"):
            raise _not_taken(subject)

    async def last(self, stream: str, count: int, *, since: datetime | None = None) -> list[StreamMessage]:
        """Return a stream's last `count` messages, or the first `count` since a time.

        They are in order. Raises `NoWorkerAnswer` where the stream cannot be read, `NotAllowed` where a permission is missing.
        """
        from nats.js.errors import APIError  # noqa: PLC0415

        try:
            return await self._connection.unless_denied(self._last(stream, count, since), f"$JS.API.STREAM.INFO.{stream}")
        except (NatsError, APIError, OSError) as bad:
            raise NoWorkerAnswer(f"stream {stream} cannot be read ({str(bad) or 'no answer'})") from bad

    async def _last(self, stream: str, count: int, since: datetime | None) -> list[StreamMessage]:
        """Read the messages. Raises what nats-py raises."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415

        jetstream = self._connection.client.jetstream(timeout=_PATIENCE)
        state = (await jetstream.stream_info(stream)).state
        first, end = max(state.first_seq, 1), state.last_seq + 1
        if since is None:
            first = max(first, end - count)
        else:
            first = await _first_since(jetstream, stream, range(first, end), since)
        messages: list[StreamMessage] = []
        for seq in range(first, min(end, first + count)):
            try:
                message = await jetstream.get_msg(stream, seq)
            except NotFoundError:
                continue
            messages.append(StreamMessage(seq, message.subject or "", message.headers or {}, message.data or b""))
        return messages

    async def stream_flaws(self, stream: StreamSpec) -> tuple[list[str], list[str]]:
        """Return what in a stream's settings breaks a promise, and what is too weak.

        Raises `NoWorkerAnswer`.
        """
        answer: dict[str, Any] = msgspec.json.decode(await self.ask(f"$JS.API.STREAM.INFO.{stream.name}", b""))
        if "error" in answer:
            raise NoWorkerAnswer(f"stream {stream.name}: {answer['error'].get('description', 'not there')}")
        return stream_rules.stream_objections(stream, answer["config"]), stream_rules.stream_remarks(stream, answer["config"])

    async def consumer_flaws(self, source: ConsumerSpec) -> list[str]:
        """Return what breaks a promise, or pauses a consumer. Raises `NoWorkerAnswer`."""
        answer: dict[str, Any] = msgspec.json.decode(await self.ask(f"$JS.API.CONSUMER.INFO.{source.stream}.{source.consumer}", b""))
        if "error" in answer:
            raise NoWorkerAnswer(f"{source.label}: {answer['error'].get('description', 'not there')}")
        stream = msgspec.json.decode(await self.ask(f"$JS.API.STREAM.INFO.{source.stream}", b""))
        must_take = filters.filters_for(source, stream.get("config", {}).get("subjects") or ())
        wrong_filters = consumer_rules.filter_objections(source, answer["config"], must_take)
        return [
            *consumer_rules.consumer_objections(source, answer["config"]),
            *wrong_filters,
            *consumer_rules.pause_warnings(source, answer),
        ]

    async def sync_flaw(self, monitor_url: str) -> str | None:
        """Return why a power cut can lose acknowledged messages. Raises `NoWorkerAnswer`."""
        from nats_taskflow.bus.nats import monitor  # noqa: PLC0415

        try:
            return monitor.sync_warning(await asyncio.to_thread(monitor.varz, monitor_url))
        except (OSError, ValueError) as bad:
            raise NoWorkerAnswer(f"{monitor_url} does not answer: {bad}") from bad

    async def listen(self, pattern: str, ready: Callable[[], None] = lambda: None) -> AsyncIterator[StreamMessage]:
        """Call `ready` once subscribed, then yield. Raises `BusLost` or `NotAllowed`."""
        queue: asyncio.Queue[StreamMessage] = asyncio.Queue()

        async def take(message: Msg) -> None:
            queue.put_nowait(StreamMessage(0, message.subject, dict(message.headers or {}), message.data))

        denied: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_denied(subject: str) -> None:
            if not denied.done():
                denied.set_result(subject)

        self._connection.on_denied.append(on_denied)
        await self._connection.client.subscribe(pattern, cb=take)
        await self._connection.flush()
        ready()
        ends: set[asyncio.Future[str]] = {self._connection.lost, denied}
        while True:
            message = asyncio.ensure_future(queue.get())
            either: set[asyncio.Future[Any]] = {message, *ends}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not message.done():
                message.cancel()
                if denied.done():
                    raise NotAllowed(self._connection.as_written(denied.result(), pattern))
                raise BusLost(f"NATS is lost: {self._connection.lost.result()}")
            yield message.result()


class StreamReader:
    """A connection that reads whole streams. Acknowledges and changes nothing.

    Raises `BusLost` where NATS does not answer, `NotAllowed` where a permission is missing.
    """

    def __init__(self, options: NatsOptions) -> None:
        self._connection = NatsConnection(options)

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._connection.close()

    async def first(self, stream: str) -> int:
        """Return the lowest sequence that the stream still keeps."""
        jetstream = self._connection.client.jetstream()
        try:
            state = (await self._connection.unless_denied(jetstream.stream_info(stream), f"$JS.API.STREAM.INFO.{stream}")).state
        except (NatsError, OSError) as bad:
            raise _unread(stream, bad) from bad
        return max(state.first_seq, 1)

    async def messages(self, stream: str) -> AsyncIterator[list[StreamMessage]]:
        """Yield a stream's messages in order, in batches, up to the last at the start."""
        from nats.js.api import AckPolicy, ConsumerConfig  # noqa: PLC0415

        jetstream, unless_denied = self._connection.client.jetstream(), self._connection.unless_denied
        # Short-lived: the server removes a consumer that nobody asks.
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60.0, mem_storage=True)
        try:
            state = (await unless_denied(jetstream.stream_info(stream), f"$JS.API.STREAM.INFO.{stream}")).state
            if state.messages == 0:
                return
            subscription = await unless_denied(
                jetstream.pull_subscribe("", stream=stream, config=config), f"$JS.API.CONSUMER.CREATE.{stream}"
            )
            last = 0
            while last < state.last_seq:
                batch = await unless_denied(
                    subscription.fetch(_READ_AT_ONCE, timeout=_READ_PATIENCE), f"$JS.API.CONSUMER.MSG.NEXT.{stream}"
                )
                messages = [StreamMessage(m.metadata.sequence.stream, m.subject, dict(m.headers or {}), m.data) for m in batch]
                last = messages[-1].seq
                yield messages
            await subscription.unsubscribe()
        except (NatsError, OSError) as bad:
            raise _unread(stream, bad) from bad


def _not_taken(subject: str) -> NoWorkerAnswer:
    return NoWorkerAnswer(f"no stream takes {subject}: is it one of the worker's reply topics?")


async def _first_since(jetstream: JetStreamContext, stream: str, places: range, at: datetime) -> int:
    """Return the place of the first message since a time, or the end of `places`."""
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    low, high = places.start, places.stop
    while low < high:
        middle = (low + high) // 2
        try:
            stored = (await jetstream.get_msg(stream, middle)).time
        except NotFoundError:
            stored = None  # removed meanwhile: the oldest go first
        if stored is None or stored < at:
            low = middle + 1
        else:
            high = middle
    return low


def _unread(stream: str, bad: BaseException) -> BusLost:
    return BusLost(f"stream {stream} cannot be read: {str(bad) or type(bad).__name__}")
