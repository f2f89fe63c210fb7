"""What can be sent to the health port: refused in HTTP's words, and never felt by the engine (RELIABILITY 4, row 65)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.stage import Agent, Stage
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("http")]

HOST = b"Host: localhost\r\n"
# What is sent, and the statuses that may come back; none: the connection is closed, or kept waiting, without an answer.
CASES: dict[str, tuple[bytes, set[int]]] = {
    "POST": (b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", {405}),
    "DELETE": (b"DELETE /metrics HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    "CONNECT": (b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405}),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    "a method nobody knows": (b"X" * 50 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    "a foreign host (DNS rebinding)": (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", {400}),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", {400}),
    "two hosts": (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", {400}),
    "%00": (b"GET /livez%00 HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    "a path that climbs": (b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    "an encoded path that climbs": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
    "bytes that are no text": (b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404}),
    "an absolute address": (b"GET http://evil.example/metrics HTTP/1.1\r\n" + HOST + b"\r\n", {200, 400, 404}),
    "a query of rubbish": (b"GET /readyz?" + b"%00&verbose=" + b"a=b&" * 1000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {200}),
    "a huge header": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000 + b"\r\n\r\n", {400, 431}),
    "ten thousand headers": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 20_000 + b"\r\n", {200, 400, 431}),
    "a huge path": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {400, 414}),
    "a header across lines": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", {200, 400}),
    "two lengths": (b"GET /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", {400}),
    "a length and chunks": (
        b"POST /livez HTTP/1.1\r\n"
        + HOST
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        {400, 405},
    ),
    "a negative length": (b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", {400}),
    "a chunk of a thousand gigabytes": (
        b"POST /livez HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\nabc",
        {400, 405},
    ),
    "a body that is announced and never sent": (b"POST /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\n", {405}),
    "an upgrade": (b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", {200, 400}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", {400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n", {400}),
    "NATS": (b'CONNECT {"verbose":false}\r\nPING\r\n\r\n', {400}),
}
_PATIENCE = 20.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A broker, and a worker that serves its health."""
    async with Stage(tmp_path_factory.mktemp("http")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kate(stage: Stage) -> Agent:
    """Somebody with real work to do."""
    return await stage.agent("kate")


def port_of(stage: Stage) -> int:
    """Return the health port."""
    return int(stage.ready["http"].rpartition(":")[2])


async def said(port: int, request: bytes) -> bytes:
    """Send bytes and return what comes back, up to the end of the answer's headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):  # it may hang up while it is still being told
            writer.write(request)
            await writer.drain()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_PATIENCE):
                return await reader.readuntil(b"\r\n\r\n")
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def status(port: int, request: bytes = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n") -> int:
    """Send a request and return the status of the answer; 0 where the connection was closed without one."""
    answer = await said(port, request)
    return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.mark.parametrize("case", CASES)
async def test_a_strange_request_is_refused_and_the_worker_does_not_feel_it(stage: Stage, kate: Agent, case: str) -> None:
    request, expected = CASES[case]
    answer = await said(port_of(stage), request)
    assert int(answer.split(b" ", 2)[1]) in expected, answer
    assert b"Traceback" not in answer
    assert await status(port_of(stage)) == 200
    assert (await kate.flow(await kate.start()))["status"] == "running"


async def test_nothing_that_was_sent_is_reflected_into_an_answer_or_the_log(stage: Stage) -> None:
    marker = b"<script>alert(1)</script>\x1b[2J"
    answers = [
        await said(port_of(stage), b"GET /" + marker.replace(b" ", b"") + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
        await said(port_of(stage), b"GET /livez HTTP/1.1\r\nHost: <script>alert(1)</script>\r\n\r\n"),
        await said(port_of(stage), b"<script> / HTTP/1.1\r\n" + HOST + b"\r\n"),
    ]
    assert all(b"<script>" not in answer for answer in answers)
    assert "script" not in "".join(log.read_text(encoding="utf-8") for log in stage.logs())


async def test_connections_that_never_finish_their_request_keep_nobody_out(stage: Stage, kate: Agent) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port_of(stage)) for _ in range(300)]
    try:
        for number, (_, writer) in enumerate(held):
            writer.write((b"", b"GET /livez HTTP/1.1\r\nX-a: b\r\n")[number % 2])  # some say nothing, some never come to an end
        await asyncio.gather(*(writer.drain() for _, writer in held), return_exceptions=True)
        for _ in range(5):
            assert await status(port_of(stage)) == 200  # what would be restarted otherwise is the worker
        assert (await kate.flow(await kate.start()))["status"] == "running"
        # It keeps no more than two hundred of them: each costs a file descriptor, and the engine needs some too.
        await eventually(lambda: sum(reader.at_eof() or reader.exception() is not None for reader, _ in held) >= 100, within=8.0)
    finally:
        for _, writer in held:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in held), return_exceptions=True)


async def test_a_connection_that_does_not_finish_its_request_is_closed(stage: Stage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(stage))
    writer.write(b"GET /livez HTTP/1.1\r\n")
    await writer.drain()
    async with asyncio.timeout(30):
        assert b"200" not in await reader.read()
    writer.close()


async def test_five_hundred_requests_at_once_are_answered_and_the_engine_goes_on(stage: Stage, kate: Agent) -> None:
    asking = asyncio.gather(*(status(port_of(stage), b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n") for _ in range(500)))
    flows = [await kate.start() for _ in range(20)]
    answers = await asking
    assert set(answers) <= {200, 0}  # of too many at once the oldest are let go
    assert answers.count(200) >= 200
    assert len(set(flows)) == 20
    assert await status(port_of(stage)) == 200
