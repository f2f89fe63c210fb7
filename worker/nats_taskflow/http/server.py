"""Listen for HTTP within bounds.

Health and metrics of the worker, MCP of an agent.

uvicorn does the HTTP. Its own limit also counts connections that never ask: with two hundred of them the orchestrator's probe would be
refused, and the worker restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nats_taskflow.errors import ConfigError
from nats_taskflow.http.bounds import BOUNDS, Bounds, RequestPace, peer_of

if TYPE_CHECKING:
    import uvicorn


Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""


def listen(host: str, port: int, *, setting: str, advice: str) -> socket.socket:
    """Listen on the address.

    Raises `ConfigError` with the setting, why the address cannot be had, and what to do.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, proto)
    except OSError as failure:
        raise ConfigError(f"{setting}: {host}:{port} is no address of this machine ({failure.strerror}); {advice}") from failure
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except OSError as failure:
        listening.close()
        why = (failure.strerror or "unknown").lower()
        raise ConfigError(f"{setting}: cannot listen on {host}:{port} ({why}); {advice}") from failure
    return listening


def place_of(listening: socket.socket) -> str:
    """Return the address that was taken: `127.0.0.1:8642`."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def names_loopback(host: str) -> bool:
    """Return whether a Host header names loopback.

    `localhost`, 127.0.0.0/8 or `[::1]`, with or without a port.
    """
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".") == "localhost" or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Return whether an address is a loopback address; of names, only `localhost` is."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_http_server(
    app: Application, up: Callable[[], None], *, lifespan: bool = False, grace_seconds: int = 1, bounds: Bounds = BOUNDS
) -> uvicorn.Server:
    """Return a server that speaks HTTP/1.1 only, and calls `up` once it answers.

    `lifespan`: the application has something to do at start and stop. `grace_seconds`: for what is being answered at a stop.
    """
    import uvicorn  # noqa: PLC0415 - 90 ms that a worker with health off does not pay

    from nats_taskflow.http.connection import BoundedConnection  # noqa: PLC0415 - as above

    class Embedded(uvicorn.Server):
        """A server that leaves signals alone: uvicorn would take SIGTERM."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            up()

    return Embedded(
        uvicorn.Config(
            _paced(app, bounds),
            http=type("Bounded", (BoundedConnection,), {"bounds": bounds}),
            ws="none",
            lifespan="on" if lifespan else "off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=bounds.idle_seconds,
            timeout_graceful_shutdown=grace_seconds,
        ),
    )


def _paced(app: Application, bounds: Bounds) -> Application:
    """Wrap an application in the rate limits of each peer, and of all together."""
    of_peer, of_all = (RequestPace(a_second, bounds.longest_wait) for a_second in (bounds.requests_a_second, bounds.all_a_second))

    async def answer(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] == "http":
            now = asyncio.get_running_loop().time
            if wait := of_peer.wait(peer_of((scope["client"] or ("",))[0]), now()):
                await asyncio.sleep(wait)
            if wait := of_all.wait("", now()):  # only now: a request that waits for its own turn takes no turn of the others
                await asyncio.sleep(wait)
        await app(scope, receive, send)

    return answer
