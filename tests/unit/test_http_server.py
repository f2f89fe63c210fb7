"""The one piece of code that listens for HTTP: whatever connections do or leave undone, somebody else's request is answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from nats_taskflow.errors import ConfigError
from nats_taskflow.http import connection, server
from nats_taskflow.http.bounds import BOUNDS, Bounds, RequestPace, one_too_many, peer_of
from nats_taskflow.http.server import listen, make_http_server, place_of
from tests.eventually import eventually

SMALL = Bounds(connections=12, of_peer=8)
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
LARGE = 16 << 20
"""Bytes: more than what is buffered between two sockets."""


class Connection(msgspec.Struct):
    """What is known of a connection."""

    peer: str
    since: float
    asks: bool = False


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole request; answer `/large` with much, `/never` not at all, and everything else in a word."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/never":
        await asyncio.Event().wait()
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def many_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each address of this machine stand for a machine of its own."""
    for module in (server, connection):
        monkeypatch.setattr(module, "peer_of", str)


@asynccontextmanager
async def serving(bounds: Bounds) -> AsyncIterator[tuple[int, Any]]:
    """Serve; gives the port and the server."""
    listening, up = listen("127.0.0.1", 0, setting="--here", advice="-"), asyncio.Event()
    server = make_http_server(app, up.set, bounds=bounds)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    await up.wait()
    try:
        yield int(place_of(listening).rpartition(":")[2]), server
    finally:
        server.force_exit = server.should_exit = True
        await running


async def opened(port: int, sent: bytes = b"", peer: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from an address of this machine, and send something."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(peer, 0))
    writer.write(sent)
    return reader, writer


async def answered(port: int, peer: str = "127.0.0.1", path: str = "/") -> bool:
    """Tell whether a request is answered."""
    reader, writer = await opened(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(), peer)
    try:
        return b" 200 " in await ended(reader)
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what came until the end."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1 << 16):
            found += part
    return found


LEFT_UNDONE = {
    "says nothing": b"",
    "never ends its head": HEAD + b"X-a: b\r\n",
    "never ends its body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "never ends its chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.mark.parametrize("how", LEFT_UNDONE)
async def test_however_many_leave_a_request_undone_the_next_one_is_answered(how: str) -> None:
    async with serving(SMALL) as (port, server):
        held = [await opened(port, LEFT_UNDONE[how]) for _ in range(5 * SMALL.connections)]
        assert [await answered(port) for _ in range(3)] == [True] * 3
        assert len(server.server_state.connections) <= SMALL.of_peer
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("how", LEFT_UNDONE)
async def test_what_is_left_undone_is_ended(how: str) -> None:
    async with serving(msgspec.structs.replace(SMALL, request_seconds=0.05)) as (port, _):
        reader, writer = await opened(port, LEFT_UNDONE[how])
        assert await ended(reader) == b""
        writer.close()


async def test_a_request_that_comes_byte_by_byte_has_no_more_time_than_another() -> None:
    async with serving(msgspec.structs.replace(SMALL, request_seconds=0.2)) as (port, _):
        reader, writer = await opened(port, HEAD)
        over = asyncio.create_task(ended(reader))

        def sent_on() -> bool:
            """Send on, and look."""
            writer.write(b"X: y\r\n")
            return over.done()

        await eventually(sent_on)
        assert await over == b""
        writer.close()


async def test_the_second_request_of_a_connection_has_to_be_whole_in_time_too() -> None:
    async with serving(msgspec.structs.replace(SMALL, request_seconds=0.2)) as (port, _):
        reader, writer = await opened(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await reader.readuntil(b"ok")
        writer.write(HEAD)
        assert await ended(reader) == b""
        writer.close()


async def test_an_answer_that_nobody_reads_is_given_up_whatever_else_is_sent() -> None:
    async with serving(msgspec.structs.replace(SMALL, answer_seconds=0.2)) as (port, server):
        reader, writer = await opened(port, b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # as a program that hangs
        await eventually(lambda: server.server_state.connections)

        def gone() -> bool:
            """Send on, and look."""
            writer.write(b"G")
            return not server.server_state.connections

        await eventually(gone)
        assert await answered(port)
        writer.close()


async def test_a_large_answer_arrives_whole() -> None:
    async with serving(SMALL) as (port, _):
        reader, writer = await opened(port, b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert len((await ended(reader)).partition(b"\r\n\r\n")[2]) == LARGE
        writer.close()


@pytest.mark.usefixtures("many_machines")
async def test_one_peer_with_too_many_keeps_no_other_out_and_loses_what_does_nothing_first() -> None:
    async with serving(SMALL) as (port, server):
        working = asyncio.create_task(answered(port, "127.0.0.3", "/never"))
        await eventually(lambda: any(one.asks for one in server.server_state.connections))
        asking = [await opened(port, b"GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n", "127.0.0.2") for _ in range(3 * SMALL.connections)]
        assert await answered(port, "127.0.0.1"), "the one that has most gives way"
        assert not working.done()
        assert sum(one.peer == "127.0.0.2" for one in server.server_state.connections) <= SMALL.of_peer
        working.cancel()
        for _, writer in asking:
            writer.close()


def test_who_has_to_go_is_of_the_busiest_peer_asks_for_nothing_and_is_the_oldest() -> None:
    mallory = [Connection("m", since, asks=since < 3) for since in range(7)]
    kate = [Connection("k", 0.5), Connection("k", 0.6)]
    bounds = Bounds(connections=9, of_peer=7)
    assert one_too_many([*mallory, *kate], kate[1], bounds) is None
    newest = Connection("k", 9.0)
    assert one_too_many([*mallory, *kate, newest], newest, bounds) is mallory[3], "not kate, who has few"
    eighth = Connection("m", 9.0)
    assert one_too_many([*mallory, eighth], eighth, bounds) is mallory[3]
    busy = [Connection("m", since, asks=True) for since in range(7)]
    assert one_too_many([*busy, eighth], eighth, bounds) is eighth, "what works is not given up for what may"


def test_who_asks_too_often_waits_and_nobody_else() -> None:
    pace = RequestPace(100, 0.5)
    assert [pace.wait("m", 5.0) for _ in range(100)] == [0.0] * 100
    assert [round(pace.wait("m", 5.0), 6) for _ in range(3)] == [0.01, 0.02, 0.03]
    assert pace.wait("k", 5.0) == 0.0
    assert max(pace.wait("m", 5.0) for _ in range(100_000)) == 0.5
    assert pace.wait("m", 7.0) == 0.0, "what was not used is there again, whatever was asked in vain"
    for number in range(5000):
        pace.wait(f"peer {number}", 10.0 + number)
    assert len(pace._due) <= 1002


@pytest.mark.usefixtures("many_machines")
async def test_a_peer_that_asks_too_often_is_answered_later_and_others_at_once() -> None:
    async with serving(msgspec.structs.replace(SMALL, requests_a_second=0.01, longest_wait=1000.0)) as (port, _):
        assert await answered(port, "127.0.0.2")
        late = asyncio.create_task(answered(port, "127.0.0.2"))
        assert await answered(port, "127.0.0.1")
        assert not late.done()
        late.cancel()


@pytest.mark.parametrize(
    "address,other,one",
    [
        ("127.0.0.1", "127.255.255.254", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "::ffff:127.0.0.9", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("127.0.0.1", "", False),
    ],
)
def test_the_addresses_that_one_machine_has_many_of_are_one_peer(address: str, other: str, one: bool) -> None:
    assert (peer_of(address) == peer_of(other)) is one


async def test_another_address_of_the_same_machine_has_no_pace_and_no_connections_of_its_own() -> None:
    async with serving(msgspec.structs.replace(SMALL, requests_a_second=0.01, longest_wait=1000.0)) as (port, server):
        assert await answered(port, "127.0.0.2")
        late = asyncio.create_task(answered(port, "127.1.2.3"))
        held = [await opened(port, peer=f"127.0.1.{number}") for number in range(1, 2 * SMALL.of_peer)]
        await eventually(lambda: len(server.server_state.connections) == SMALL.of_peer)
        assert not late.done()
        late.cancel()
        for _, writer in held:
            writer.close()


async def test_all_peers_together_have_a_pace_and_what_waits_for_its_own_turn_takes_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def waited(seconds: float) -> None:
        waits.append(round(seconds, 6))
        await asyncio.Event().wait()

    async def nothing(*_: Any) -> None:
        """Answer."""

    def at_once(peer: str) -> bool:
        """Ask, as far as that goes without a wait, and tell whether it was answered."""
        return next(served({"type": "http", "client": (peer, 1)}, None, None).__await__(), "answered") == "answered"

    monkeypatch.setattr(asyncio, "sleep", waited)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 5.0)
    served = server._paced(nothing, Bounds(requests_a_second=10, all_a_second=20))
    assert [at_once("192.0.2.1") for _ in range(13)] == [True] * 10 + [False] * 3
    assert [at_once("192.0.2.2") for _ in range(10)] == [True] * 10
    assert waits == [0.1, 0.2, 0.3]
    assert not at_once("192.0.2.3")
    assert waits[3:] == [0.05]


def test_there_is_room_for_others_beside_one_peer() -> None:
    assert 0 < BOUNDS.of_peer < BOUNDS.connections
    assert BOUNDS.of_peer / BOUNDS.longest_wait <= BOUNDS.all_a_second, "the most that one gets by asking on all it has, and waiting"


def test_an_address_that_cannot_be_had_names_the_setting_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"--here.*do that"):
        listen("127.0.0.1", taken.getsockname()[1], setting="--here", advice="do that")
    with pytest.raises(ConfigError, match=r"--here.*do that"):
        listen("no.such.host.invalid", 1, setting="--here", advice="do that")
