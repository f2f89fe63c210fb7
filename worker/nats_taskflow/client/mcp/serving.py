"""Run the MCP server on stdin and stdout, or as streamable HTTP."""

from __future__ import annotations

import asyncio
import hmac
import json
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl

from nats_taskflow.bus.nats.options import NatsOptions, nats_options
from nats_taskflow.client.mcp.lazy_client import LazyClient, Owner
from nats_taskflow.client.mcp.server import make_server
from nats_taskflow.client.nats import NatsTransport
from nats_taskflow.errors import ConfigError
from nats_taskflow.http.server import Application, is_loopback, listen, make_http_server, place_of

if TYPE_CHECKING:
    from nats_taskflow.config import Config, Secret

PATH = "/mcp"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SHORTEST_TOKEN = 16
"""Characters: an empty file must not let everybody in."""


class HttpEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen and whom to answer.

    `hosts`, `origins`: headers accepted besides those of the address and of the loopback.
    """

    host: str
    port: int
    token: Secret | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


async def serve(config: Config, owner: Owner, *, http: HttpEndpoint | None, split: bool, keys: bool, patience: float) -> int:
    """Serve until stdin closes or the process is told to stop; return the exit code."""
    options = msgspec.structs.replace(nats_options(config.nats), name="taskflow-mcp")
    client = LazyClient(owner, _dialer(options), prefix=config.subjects.prefix, patience=patience)
    server = make_server(client, split=split, keys=keys)
    try:
        await (_stdio(server) if http is None else _http(server, http, owner))
    finally:
        await client.drop()
    return 0


def _dialer(options: NatsOptions) -> Any:
    """Return a function that connects."""

    async def dial() -> NatsTransport:
        return await NatsTransport.reach(options)

    return dial


async def _stdio(server: Server[None]) -> None:
    # The SDK reads stdin in a thread that nothing can interrupt: a graceful stop would wait for the next line. None is needed: JetStream
    # has what was accepted, and a call that is cut off may be repeated.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


async def _http(server: Server[None], http: HttpEndpoint, owner: Owner) -> None:
    """Serve HTTP until SIGTERM or SIGINT; says on stdout where, once it listens."""
    listening = listen(http.host, http.port, setting="--http", advice="choose another port, or 0 for a free one")
    place = place_of(listening)
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,  # as MCP 2026-07-28 is; for older clients it saves sessions that nobody closes
        json_response=True,
        host=http.host,
        transport_security=_security(http, place),
        token_verifier=_Verifier(http.token) if http.token is not None else None,
        auth=_AUTH if http.token is not None else None,
    )
    ready = json.dumps({"event": "ready", "url": f"http://{place}{PATH}", "owner": str(owner)})

    def tell() -> None:
        sys.stdout.write(f"{ready}\n")
        sys.stdout.flush()

    running = make_http_server(_refuse_get(app), tell, lifespan=True, grace_seconds=2)

    def stop() -> None:
        running.force_exit = running.should_exit  # at the second signal, stop at once
        running.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await running.serve(sockets=[listening])


def _refuse_get(app: Application) -> Application:
    """Refuse GET: it would hold a connection for ever and hear nothing.

    A server may do so that sends nothing by itself.
    """

    async def answer(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request (ASGI 3)."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 405, "headers": [(b"allow", b"POST"), (b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return answer


class _Verifier:
    """Compares the bearer token with the secret, read each time for a rotated file."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the token's access, None for a wrong token."""
        try:
            secret = self._secret.reveal()
        except ConfigError:
            return None  # the file is gone: nobody can show the right token
        if len(secret) < SHORTEST_TOKEN or not hmac.compare_digest(token.encode(), secret.encode()):
            return None
        return AccessToken(token=token, client_id="taskflow", scopes=[])


_AUTH = AuthSettings(issuer_url=AnyHttpUrl("http://127.0.0.1"), resource_server_url=None)
"""The SDK asks for it beside a verifier. Nobody issues our token: it is a shared secret; so no metadata are served."""


def _security(http: HttpEndpoint, place: str) -> TransportSecuritySettings:
    """Return which `Host` and `Origin` headers are answered.

    A web page may point its own name at this address (DNS rebinding).
    """
    names = _LOOPBACK if is_loopback(http.host) else ()
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[place, *(f"{name}:*" for name in names), *http.hosts],
        allowed_origins=list(http.origins),  # no page without permission, not even one of this machine: anything may run on some port of it
    )
