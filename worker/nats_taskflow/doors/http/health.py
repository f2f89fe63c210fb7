"""Answer health questions and serve metrics over HTTP.

They are served in the worker's own event loop: `/livez /readyz /startupz /healthz /metrics`.

The names and the verbose form are those of Kubernetes. Losing NATS makes the worker not ready; it stays alive.
The application is a bare ASGI callable; `server` does the HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from nats_taskflow.config.parsers import split_bind
from nats_taskflow.http.server import is_loopback, listen, make_http_server, names_loopback, place_of
from nats_taskflow.observe.health import HealthCheck, HealthProbes
from nats_taskflow.tasks import keep

if TYPE_CHECKING:
    import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_METRICS_SECONDS = 1.0
_ADVICE = "choose another address, port 0 for a free one, or off (TASKFLOW_HTTP_BIND)"
_PLAIN = "text/plain; charset=utf-8"


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = _PLAIN
    headers: tuple[tuple[bytes, bytes], ...] = ()


class MetricsPage:
    """The text of `/metrics`, made at most once a second, however many ask.

    It takes milliseconds in which the loop does nothing else.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._text = b""
        self._made = float("-inf")

    def text(self) -> bytes:
        """Return what there was to say at most a second ago."""
        if self._clock() - self._made >= _METRICS_SECONDS:
            self._text, self._made = generate_latest(self._registry), self._clock()
        return self._text


class HealthApp:
    """The ASGI application: a method, a path, a Host header in; an `HttpAnswer` out.

    `registry` None: no `/metrics`.
    """

    def __init__(self, probes: HealthProbes, registry: CollectorRegistry | None, *, loopback_only: bool) -> None:
        self._pages: Mapping[str, Callable[[], Sequence[HealthCheck]]] = {
            "/livez": probes.live,
            "/readyz": probes.ready,
            "/startupz": probes.started,
            "/healthz": probes.ready,
        }
        self._metrics = MetricsPage(registry) if registry is not None else None
        self._loopback_only = loopback_only

    async def __call__(self, scope: Mapping[str, Any], _receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] != "http":  # uvicorn is set up to offer nothing else
            return
        headers = dict(scope["headers"])
        answer = self.answer(
            scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers.get(b"host", b"").decode("latin-1")
        )
        headers_sent = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers_sent})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def answer(self, method: str, path: str, query: str, host: str) -> HttpAnswer:
        """Decide what a request is answered with."""
        if self._loopback_only and not names_loopback(host):
            # A web page may have its own name point to 127.0.0.1 (DNS rebinding); its requests carry that name.
            return HttpAnswer(status=400, body=b"this address answers to localhost only; use http://127.0.0.1\n")
        if method not in {"GET", "HEAD"}:
            return HttpAnswer(status=405, body=b"only GET and HEAD are answered here\n", headers=((b"allow", b"GET, HEAD"),))
        if path == "/metrics" and self._metrics is not None:
            return HttpAnswer(status=200, body=self._metrics.text(), content_type=CONTENT_TYPE_LATEST)
        page = self._pages.get(path)
        if page is None:
            return HttpAnswer(status=404, body=("no such page; there are " + " ".join([*self._pages, "/metrics"]) + "\n").encode())
        return _report(path, page(), verbose="verbose" in parse_qs(query, keep_blank_values=True))


def _line(check: HealthCheck) -> str:
    if not check.ok:
        return f"[-]{check.name} failed: {check.reason}"
    return f"[+]{check.name} ok" + (f": {check.remark}" if check.remark else "")


def _report(path: str, checks: Sequence[HealthCheck], *, verbose: bool) -> HttpAnswer:
    """Write what the checks found: `ok`, or every reason.

    With `verbose` a line for each check.
    """
    well = all(check.ok for check in checks)
    if well and not verbose:
        return HttpAnswer(status=200, body=b"ok\n")
    lines = [_line(check) for check in checks if verbose or not check.ok]
    lines.append(f"{path[1:]} check {'passed' if well else 'failed'}")
    return HttpAnswer(status=200 if well else 503, body=("\n".join(lines) + "\n").encode())


class HealthServer:
    """Serves health and metrics until it is stopped.

    On `bind`: `host:port` or the pair, port 0 for a free one.

    `registry` None: no `/metrics`. Either `start` and `stop`, or `run` as a task that is cancelled.
    """

    def __init__(self, bind: str | tuple[str, int], probes: HealthProbes, registry: CollectorRegistry | None) -> None:
        self._host, self._port = split_bind(bind) if isinstance(bind, str) else bind
        self._app = HealthApp(probes, registry, loopback_only=is_loopback(self._host))
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.address = ""
        """The address that was really taken (`127.0.0.1:8642`); empty before `start`."""
        self.up = asyncio.Event()
        """Set once requests are answered."""

    async def start(self) -> str:
        """Begin to serve; give the address that was really taken (`127.0.0.1:8642`).

        Raise `ConfigError` when it cannot be had.
        """
        # In a thread: a host name may take a look-up.
        listening = await asyncio.to_thread(listen, self._host, self._port, setting="http.bind", advice=_ADVICE)
        self.address = place_of(listening)
        self._server = make_http_server(self._app, self.up.set)
        self._serving = keep(self._server.serve(sockets=[listening]), "health")
        announced = asyncio.ensure_future(self.up.wait())
        await asyncio.wait({self._serving, announced}, return_when=asyncio.FIRST_COMPLETED)
        announced.cancel()
        if self._serving.done():
            self._serving.result()
        return self.address

    async def stop(self) -> None:
        """Close every connection and end; safe to call twice, and before `start`."""
        if self._server is None or self._serving is None:
            return
        server, serving = self._server, self._serving
        self._server = self._serving = None
        self.up.clear()
        server.should_exit = True
        try:
            await serving
        finally:
            for listening in server.servers:
                listening.close()  # which uvicorn does not where it has failed

    async def run(self) -> None:
        """Serve until cancelled. Raise when the server ends by itself."""
        await self.start()
        if self._serving is None:
            return
        try:
            await asyncio.shield(self._serving)
        finally:
            await self.stop()
