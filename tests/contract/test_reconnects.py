"""A connection that goes at any step of its reconnection is made again, whole: one reader, one writer, one that pings."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from nats_taskflow.bus.nats import connection as connections
from nats_taskflow.bus.nats.client import TcpConnection
from nats_taskflow.bus.nats.connection import ApiTimeout, NatsConnection, NatsOptions
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.nats.publisher import Publisher
from nats_taskflow.bus.port import OutgoingMessage, PublishFailed
from tests.eventually import eventually

INFO = b'INFO {"server_id":"S","version":"2.12.0","headers":true,"max_payload":%d}\r\n'
STEPS = (
    "nothing",
    "half of INFO",
    "INFO",
    "CONNECT",
    "half of PONG",
    "another answer",
    "PONG",
    "PONG and half of a message",
    "SUB",
    "all of SUB",
    "second PING",
    "second PONG",
    "second PONG and half of a message",
)


class Broker:
    """Speaks as much of the protocol as a reconnection needs, and hangs up at a step: `steps` has one for each connection to come."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.reset = False
        self.max_payload = 1_000_000
        self.ends_with: Callable[[bytes], bytes] = lambda _: b""  # what to say before it hangs up for a message
        self.refuses: Callable[[], None] | None = None  # called for each subscription that is over the limit
        self.acknowledges = b'{"stream":"S","seq":1}'
        self.got: list[bytes] = []
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Listen; gives the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        self.drop()
        await server.wait_closed()

    def drop(self) -> None:
        """Hang up on everybody."""
        for writer in self._writers:
            self._hang_up(writer)

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        if self.reset:
            writer.transport.abort()
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._talk(reader, writer, self.steps.pop(0) if self.steps else "never")
        self._hang_up(writer)
        self._writers.discard(writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last: str) -> None:
        """Talk up to the last step."""
        info = INFO % self.max_payload
        if last == "nothing":
            return
        writer.write(info[:30] if last == "half of INFO" else info)
        if "INFO" in last:
            return
        pings, subscriptions = 0, dict[bytes, bytes]()
        while line := await reader.readline():
            verb, *words = line.split()
            if verb == last.encode():
                return
            if verb == b"SUB" and self.refuses is not None:
                self.refuses()
                writer.write(b"-ERR 'maximum subscriptions exceeded'\r\n")
                return
            if verb == b"SUB":
                subscriptions[words[0]] = words[1]
            elif verb in {b"PUB", b"HPUB"}:
                whole = await reader.readexactly(int(words[-1]) + 2)
                body = whole[int(words[-2]) if verb == b"HPUB" else 0 : -2]
                if said := self.ends_with(body):
                    writer.write(said)
                    return
                self._take(body, words, subscriptions, writer)
            elif verb == b"PING":
                pings += 1
                if self._is_last_ping(last, pings, writer):
                    return

    def _take(self, body: bytes, words: list[bytes], subscriptions: dict[bytes, bytes], writer: asyncio.StreamWriter) -> None:
        """Take a message: acknowledge it where it has a reply subject."""
        self.got.append(body)
        number = subscriptions.get(words[1].rpartition(b".")[0] + b".*")
        if number is not None:
            writer.write(b"MSG %b %b %d\r\n%b\r\n" % (words[1], number, len(self.acknowledges), self.acknowledges))

    @staticmethod
    def _is_last_ping(last: str, pings: int, writer: asyncio.StreamWriter) -> bool:
        """Answer a PING; True where the connection ends with it. The first one ends the handshake, the second the reconnection."""
        if last == "another answer":
            writer.write(b"+OK\r\n")
            return True
        if last == "half of PONG":
            writer.write(b"PO")
            return True
        if last == "second PING" and pings > 1:
            return True
        ends = (last.startswith("PONG") and pings == 1) or (last.startswith("second PONG") and pings > 1)
        writer.write(b"PONG\r\n" + (b"MSG plain 1 1000\r\n12345" if ends and "half" in last else b""))
        return ends or (last == "all of SUB" and pings > 1)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@asynccontextmanager
async def connected(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[NatsConnection, Publisher, list[bytes]]]:
    """Give a connection that reconnects at once, with one subscription and a publisher."""
    monkeypatch.setattr(connections, "_RECONNECT_WAIT", 0.001)
    heard: list[bytes] = []
    async with broker.open() as url:
        connection = NatsConnection(NatsOptions(servers=(url,), connect_timeout=5.0))
        await connection.open()
        await connection.client.subscribe_directly("plain", lambda _subject, _reply, body, _headers: heard.append(body))
        publisher = Publisher(connection, timeout=5.0)
        await publisher.open()
        await connection.flush()
        yield connection, publisher, heard
        publisher.close()
        await connection.close()


def serving() -> Counter[str]:
    """Count the tasks that serve connections of nats-py's."""
    names = ("_read_loop", "_flusher", "_ping_interval", "_attempt_reconnect")
    running = (getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks())
    return Counter(name for name in running if name in names)


WHOLE = Counter(["_read_loop", "_flusher", "_ping_interval"])


async def stored(publisher: Publisher, body: bytes) -> None:
    """Have a message stored, and published again where the connection was lost meanwhile."""
    while True:
        try:
            await publisher.publish(OutgoingMessage(subject="taskflow.evt.x", body=body, msg_id="m"))
        except PublishFailed:
            await asyncio.sleep(0)
        else:
            return


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_connection_that_goes_at_any_step_is_made_again_whole(broker: Broker, monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    async with connected(broker, monkeypatch) as (connection, publisher, heard):
        broker.reset = reset
        for step in STEPS:
            broker.steps = [step, step]
            before = broker.connections
            broker.drop()
            await eventually(lambda: broker.connections >= before + 3 and connection.connected)  # noqa: B023  awaited within the round
            await stored(publisher, step.encode())
            assert await connection.client.rtt() > 0, step
            await eventually(lambda: serving() == WHOLE)
            assert broker.connections == before + 3, step
            assert heard == [], "what was half read of one connection is nobody's message"


@pytest.mark.parametrize("task", ["_reading_task", "_flusher_task", "_ping_interval_task"])
@pytest.mark.parametrize("error", [None, RuntimeError("of the loop's")], ids=["ended", "failed"])
async def test_a_connection_that_nobody_serves_any_more_is_made_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, task: str, error: Exception | None
) -> None:
    async with connected(broker, monkeypatch) as (connection, publisher, _):

        async def end() -> None:
            if error is not None:
                raise error

        getattr(connection.client, task).cancel()
        other = asyncio.create_task(end())
        setattr(connection.client, task, other)
        other.add_done_callback(connection.client._on_end)
        await eventually(lambda: broker.connections == 2 and connection.connected)
        await stored(publisher, b"1")
        await eventually(lambda: serving() == WHOLE)


async def test_an_error_that_nats_py_does_not_know_ends_no_reconnection(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(broker, monkeypatch) as (connection, publisher, _):
        failing = [ZeroDivisionError(), AttributeError()]

        def write(link: TcpConnection, payload: bytes) -> None:
            if failing and payload.startswith(b"SUB"):
                raise failing.pop()
            written(link, payload)

        written = TcpConnection.write
        monkeypatch.setattr(TcpConnection, "write", write)
        broker.drop()
        await eventually(lambda: not failing and connection.connected)
        await stored(publisher, b"1")
        await eventually(lambda: serving() == WHOLE)


async def test_what_was_not_written_when_the_connection_went_is_written_only_where_it_may_be_late(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(broker, monkeypatch) as (connection, publisher, _):
        client = connection.client
        client._flusher_task.cancel()  # type: ignore[union-attr]
        client._flusher_task = asyncio.create_task(asyncio.sleep(3600))  # nobody writes what is handed over now
        connection.outbound.put(Frame("evt", b"event"))
        connection.outbound.put(Frame("ack", b"settlement", keep=True))
        await connection.outbound.drain()
        assert len(client._pending) == 2
        broker.drop()
        await eventually(lambda: broker.connections == 2 and connection.connected)
        await stored(publisher, b"1")
        assert broker.got == [b"settlement", b"1"]


async def test_an_error_of_the_server_s_is_a_lost_connection_and_its_limits_are_read_anew(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.ends_with = lambda body: b"-ERR 'Maximum Payload Violation'\r\n" if len(body) > broker.max_payload else b""
    async with connected(broker, monkeypatch) as (connection, publisher, _):
        broker.max_payload = 100  # a reload of the server's: it tells nobody
        message = OutgoingMessage(subject="taskflow.evt.x", body=b"x" * 200, msg_id="m")
        with pytest.raises(PublishFailed, match="lost") as first:
            await publisher.publish(message)
        assert not first.value.unsendable
        await eventually(lambda: broker.connections == 2 and connection.connected)
        assert connection.max_payload == 100
        with pytest.raises(PublishFailed, match="100") as second:
            await publisher.publish(message)
        assert second.value.unsendable
        assert not connection.lost.done()


async def test_a_server_that_ends_each_connection_with_an_error_is_asked_ever_later(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose limit on subscriptions was lowered: it would be twice a second, for ever."""
    times: list[float] = []
    async with connected(broker, monkeypatch) as (connection, _, _heard):
        broker.refuses = lambda: times.append(asyncio.get_running_loop().time())
        broker.drop()
        with capture_logs() as logs:
            await eventually(lambda: len(times) == 4)
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert [wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True)] == [True] * 3, waits
        assert "maximum subscriptions exceeded" in {log["reason"] for log in logs if log["event"] == "bus.error"}
        broker.refuses = None
        await eventually(lambda: connection.connected)
        assert not connection.lost.done()


async def test_a_question_to_a_connection_that_has_just_gone_gets_no_answer(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(broker, monkeypatch) as (connection, _, _heard):
        connection.client._flusher_task = None  # as where it has just ended: who asks writes by himself
        connection.client._abort()
        with pytest.raises(ApiTimeout, match="closed"):
            await connection.ask("$JS.API.INFO")


async def test_a_duplicate_that_cannot_be_looked_at_for_any_reason_is_published_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(broker, monkeypatch) as (connection, publisher, _):
        broker.acknowledges = b'{"stream":"S","seq":1,"duplicate":true}'

        async def ask(*_: object) -> bytes:
            raise ZeroDivisionError

        monkeypatch.setattr(connection, "ask", ask)
        with pytest.raises(PublishFailed, match="not known"):
            await asyncio.wait_for(publisher.publish(OutgoingMessage(subject="taskflow.evt.x", body=b"1", msg_id="m")), 5)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_every_loop_says_in_the_same_words_that_a_connection_is_gone(broker: Broker, loop: str) -> None:
    async def write() -> None:
        async with broker.open() as url:
            connection = NatsConnection(NatsOptions(servers=(url,)))
            await connection.open()
            connection.client._abort()
            for _ in range(3):  # uvloop's own words change with its next round
                with pytest.raises(ConnectionResetError):
                    connection.client._transport.write(b"PING\r\n")  # type: ignore[union-attr]
                await asyncio.sleep(0)
            await connection.close()

    factory = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(write())
