"""Answer health questions and serve metrics over HTTP, inside the worker's own event loop: `/livez /readyz /startupz /healthz /metrics`.

The names and the verbose form are those of Kubernetes. Losing NATS makes the worker not ready; it stays alive.
The application is a bare ASGI callable; uvicorn, imported only when a server starts, does the HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from worker.config.readers import split_bind
from worker.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_CONNECTION_SECONDS = 10.0
_MAX_CONNECTIONS = 200
_PLAIN = "text/plain; charset=utf-8"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at; `reason` says in a few words why it is not well, `remark` what is worth knowing all the same."""

    name: str
    ok: bool
    reason: str = ""
    remark: str = ""


class Probes(Protocol):
    """Whoever knows how the worker is. Each call looks now, returns at once and never raises."""

    def live(self) -> Sequence[Check]:
        """Tell whether the process works at all; not well means: restart it."""

    def ready(self) -> Sequence[Check]:
        """Tell whether it does its work now (NATS connected, store writable, not stopping)."""

    def started(self) -> Sequence[Check]:
        """Tell whether starting is over."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = _PLAIN
    headers: tuple[tuple[bytes, bytes], ...] = ()


class HealthApp:
    """The ASGI application: a method, a path, a Host header in; an `Answer` out. `registry` None: no `/metrics`."""

    def __init__(self, probes: Probes, registry: CollectorRegistry | None, *, loopback_only: bool) -> None:
        self._pages: Mapping[str, Callable[[], Sequence[Check]]] = {
            "/livez": probes.live,
            "/readyz": probes.ready,
            "/startupz": probes.started,
            "/healthz": probes.ready,
        }
        self._registry = registry
        self._loopback_only = loopback_only

    async def __call__(self, scope: Mapping[str, Any], _receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] != "http":  # uvicorn is set up to offer nothing else
            return
        headers = dict(scope["headers"])
        answer = self.answer(
            scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers.get(b"host", b"").decode("latin-1")
        )
        told = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": told})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def answer(self, method: str, path: str, query: str, host: str) -> Answer:
        """Decide what a request is answered with."""
        if self._loopback_only and not names_loopback(host):
            # A web page may have its own name point to 127.0.0.1 (DNS rebinding); its requests carry that name.
            return Answer(status=400, body=b"this address answers to localhost only; use http://127.0.0.1\n")
        if method not in {"GET", "HEAD"}:
            return Answer(status=405, body=b"only GET and HEAD are answered here\n", headers=((b"allow", b"GET, HEAD"),))
        if path == "/metrics" and self._registry is not None:
            return Answer(status=200, body=generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)
        page = self._pages.get(path)
        if page is None:
            return Answer(status=404, body=("no such page; there are " + " ".join([*self._pages, "/metrics"]) + "\n").encode())
        return _report(path, page(), verbose="verbose" in parse_qs(query, keep_blank_values=True))


def _line(check: Check) -> str:
    """Write what one check found."""
    if not check.ok:
        return f"[-]{check.name} failed: {check.reason}"
    return f"[+]{check.name} ok" + (f": {check.remark}" if check.remark else "")


def _report(path: str, checks: Sequence[Check], *, verbose: bool) -> Answer:
    """Write what the checks found: `ok`, or every reason; with `verbose` a line for each check."""
    well = all(check.ok for check in checks)
    if well and not verbose:
        return Answer(status=200, body=b"ok\n")
    lines = [_line(check) for check in checks if verbose or not check.ok]
    lines.append(f"{path[1:]} check {'passed' if well else 'failed'}")
    return Answer(status=200 if well else 503, body=("\n".join(lines) + "\n").encode())


def names_loopback(host: str) -> bool:
    """Tell whether a Host header names this machine's loopback: `localhost`, 127.0.0.0/8 or `[::1]`, with or without a port."""
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".") == "localhost" or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Tell whether an address is a loopback address; names other than `localhost` are not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HealthServer:
    """Serves health and metrics on `bind` (`host:port` or the pair, port 0 for a free one) until it is stopped.

    `registry` None: no `/metrics`. Either `start` and `stop`, or `run` as a task that is cancelled.
    """

    def __init__(self, bind: str | tuple[str, int], probes: Probes, registry: CollectorRegistry | None) -> None:
        self._host, self._port = split_bind(bind) if isinstance(bind, str) else bind
        self._app = HealthApp(probes, registry, loopback_only=is_loopback(self._host))
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.address = ""
        """The address that was really taken (`127.0.0.1:8642`); empty before `start`."""
        self.up = asyncio.Event()
        """Set once requests are answered."""

    async def start(self) -> str:
        """Begin to serve; give the address that was really taken (`127.0.0.1:8642`). Raise `ConfigError` when it cannot be had."""
        listening = await asyncio.to_thread(_listen, self._host, self._port)  # a host name may take a look-up
        host, port = listening.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server = _make_server(self._app, self.up)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]), name="health")
        announced = asyncio.create_task(self.up.wait())
        await asyncio.wait({self._serving, announced}, return_when=asyncio.FIRST_COMPLETED)
        announced.cancel()
        if self._serving.done():
            self._serving.result()
        return self.address

    async def stop(self) -> None:
        """Close every connection and end; safe to call twice, and before `start`."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None
        self.up.clear()

    async def run(self) -> None:
        """Serve until cancelled. Raise when the server ends by itself."""
        await self.start()
        if self._serving is None:
            return
        try:
            await asyncio.shield(self._serving)
        finally:
            await self.stop()


def _listen(host: str, port: int) -> socket.socket:
    """Take the address; raise `ConfigError` saying why it cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        taken = socket.socket(family, kind, proto)
    except OSError as failure:
        raise ConfigError(
            f"http.bind: {host}:{port} is no address of this machine ({failure.strerror}); set it to 127.0.0.1:8642 or off"
        ) from failure
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(128)
        taken.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except OSError as failure:
        taken.close()
        raise ConfigError(
            f"http.bind: cannot listen on {host}:{port} ({(failure.strerror or 'unknown').lower()}); "
            "choose another port, 0 for a free one, or off (TASKFLOW_HTTP_BIND)",
        ) from failure
    return taken


def _make_server(app: HealthApp, up: asyncio.Event) -> uvicorn.Server:
    """Make a uvicorn server that leaves signals and logging alone, serves plain HTTP/1.1 only, and sets `up` when it does."""
    import uvicorn  # noqa: PLC0415 - 90 ms that a worker with health off does not pay

    class Embedded(uvicorn.Server):
        """A server in a process that handles its own signals: uvicorn would take SIGTERM away from the worker, then raise it again."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Capture none."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Start, then say so."""
            await super().startup(sockets)
            up.set()

    return Embedded(
        uvicorn.Config(
            app,
            http=_connection_class(),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        ),
    )


def _connection_class() -> type[asyncio.Protocol]:
    """Make the class of connections that can keep nobody else out: uvicorn waits for the rest of a request for ever, and its own limit
    counts connections that say nothing. A hundred of them, and an orchestrator whose question is refused restarts the worker.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415 - as above

    class Connection(H11Protocol):
        """An HTTP/1.1 connection that ends after some seconds, or earlier where too many came after it."""

        since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            """Begin; let the oldest go where there are too many."""
            super().connection_made(transport)
            self.since = self.loop.time()
            self._end = self.loop.call_later(_CONNECTION_SECONDS, self.shutdown)
            if len(self.connections) > _MAX_CONNECTIONS:
                oldest = min(self.connections, key=lambda one: getattr(one, "since", 0.0))
                oldest.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            """End."""
            self._end.cancel()
            super().connection_lost(exc)

    return Connection
