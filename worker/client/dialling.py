"""Find out where NATS is and who one is there, as the worker and the command line do, and connect once, or fail soon with a reason.

nats-py by itself gives up after 60 attempts, and loops for ever on wrong credentials at the start (facts: nats-py 2.16).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from worker.bus.options import NatsOptions, check_readable, jwt_login, nats_options, public_address
from worker.client.transport import Lost
from worker.errors import Refusal

_RECONNECT_WAIT = 0.25
_REFUSED = ("authorization", "authentication")
Noting = Callable[[Exception], Awaitable[None]]
Notice = Callable[[], Awaitable[None]]


def options_for(where: str | None, **said: Any) -> NatsOptions:
    """Return how to reach NATS. `where` is a URL (or several, comma separated), a context of the `nats` CLI, or None: as the settings say.

    The settings are those of the command line: environment, `taskflow.toml`, context. `said` replaces fields of `NatsOptions`. Raises
    `Lost` with the sentence of the setting that cannot be right.
    """
    from worker.config import load  # noqa: PLC0415 - a client that is given a connection needs no settings

    flags = {} if where is None else {"nats.url" if ":" in where or "." in where else "nats.context": where}
    try:
        options = nats_options(load(flags).nats)
    except Refusal as wrong:
        raise Lost(str(wrong)) from wrong
    return msgspec.structs.replace(options, **{name: value for name, value in said.items() if value is not None})


async def dial(client: Client, options: NatsOptions, on_error: Noting, on_up: Notice) -> None:
    """Connect for good: every later outage is survived. Raises `Lost` within `connect_timeout` with one sentence."""
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    last: list[str] = ["no answer"]

    async def note(error: Exception) -> None:
        """Take note of what nats-py reports; must not raise, or the read loop ends."""
        last[0] = str(error).removeprefix("nats: ").strip(" '") or type(error).__name__
        if not refused.done() and any(word in last[0].lower() for word in _REFUSED):
            refused.set_result(last[0])
        await on_error(error)

    dialling = asyncio.ensure_future(client.connect(**_arguments(options), error_cb=note, reconnected_cb=on_up))
    either: set[asyncio.Future[Any]] = {dialling, refused}
    await asyncio.wait(either, timeout=options.connect_timeout, return_when=asyncio.FIRST_COMPLETED)
    if dialling.done() and not dialling.cancelled() and dialling.exception() is None and client.is_connected:
        return
    where = ", ".join(map(public_address, options.servers))
    failed = dialling.exception() if dialling.done() and not dialling.cancelled() else None
    dialling.cancel()
    await asyncio.wait({dialling})
    await hang_up(client)
    if refused.done():
        raise Lost(f"NATS at {where} refuses the credentials: {refused.result()}")
    raise Lost(f"NATS at {where} cannot be reached within {options.connect_timeout:g} s: {failed or last[0]}")


async def hang_up(client: Client) -> None:
    """Close without draining, which can hang; a peer that reads nothing must not hold us up. Never raises."""
    try:
        async with asyncio.timeout(3.0):
            await client.close()
    except (NatsError, OSError, TimeoutError):
        return  # closing is best effort, whatever state the client is in


def _arguments(options: NatsOptions) -> dict[str, Any]:
    """Spell the policy out for nats-py; raises `Lost` for files that cannot be read."""
    try:
        for path in (options.creds, options.nkey_seed, options.tls_ca, options.tls_cert, options.tls_key):
            check_readable(path)
        tls = _tls(options)
    except (Refusal, OSError, ValueError) as wrong:
        raise Lost(f"the files for NATS cannot be used: {wrong}") from wrong
    return {
        "servers": list(options.servers),
        "name": options.name,
        "user": options.user,
        "password": options.password,
        "token": options.token,
        "user_credentials": options.creds,
        "nkeys_seed": options.nkey_seed,
        **jwt_login(options),
        "tls": tls,
        "inbox_prefix": options.inbox_prefix,
        "connect_timeout": options.connect_timeout,
        "max_reconnect_attempts": -1,  # the default, 60, closes the client for good after two minutes
        "reconnect_time_wait": _RECONNECT_WAIT,
        "ping_interval": options.ping_interval,
        "max_outstanding_pings": 1,  # a dead peer is found within two intervals; the defaults take six minutes
    }


def _tls(options: NatsOptions) -> ssl.SSLContext | None:
    """Build the TLS context where one is configured; otherwise nats-py uses the system's for `tls://`."""
    if options.tls_ca is None and options.tls_cert is None:
        return None
    context = ssl.create_default_context(cafile=options.tls_ca)
    if options.tls_cert is not None:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    return context
