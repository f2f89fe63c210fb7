"""Spell the policy of a connection out for nats-py, and read what it says when something is refused. Both sides hold to it.

Light: the agents' client imports it with every connection.
"""

from __future__ import annotations

import importlib.util
import os
import re
import ssl
from typing import Any, NamedTuple

from nats_taskflow.bus.nats.client import NotEncrypted
from nats_taskflow.bus.nats.options import NatsOptions, check_readable, jwt_login
from nats_taskflow.errors import BusLost, ConfigError

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
_REFUSED = ("authorization", "authentication")


class Denied(NamedTuple):
    """What the credentials may not do: `publish` or `subscription`, and on which subject, in lower case as the server may write it."""

    what: str
    subject: str


def arguments(options: NatsOptions, *, reconnect_wait: float) -> dict[str, Any]:
    """Return what `Client.connect` takes, but for the callbacks.

    Raises `BusLost` for files that cannot be read, `ConfigError` for addresses that no attempt can reach and
    for secrets in the place of their files: nats-py would go on trying.
    """
    _check_schemes(options)
    for field in ("creds", "nkey_seed", "tls_ca", "tls_cert", "tls_key"):
        check_readable(field, getattr(options, field))
    return {
        "servers": list(options.servers),
        "name": options.name,
        "user": options.user,
        "password": options.password,
        "token": options.token,
        "user_credentials": options.creds,
        "nkeys_seed": options.nkey_seed,
        **jwt_login(options),
        "tls": _tls(options),
        "tls_handshake_first": options.tls_first,
        "inbox_prefix": options.inbox_prefix,
        "connect_timeout": options.connect_timeout,
        "max_reconnect_attempts": -1,  # the default, 60, closes the client for good after two minutes
        "reconnect_time_wait": reconnect_wait,
        "ping_interval": options.ping_interval,
        "max_outstanding_pings": 1,  # a dead peer is found within two intervals; the defaults take six minutes
    }


def _check_schemes(options: NatsOptions) -> None:
    """Raise `ConfigError` for addresses that nats-py cannot use."""
    web = [url.partition("://")[0] in ("ws", "wss") for url in options.servers]
    if any(web) and not all(web):
        raise ConfigError("nats.url has both WebSocket addresses (ws://, wss://) and others; name one kind only")
    if any(web) and importlib.util.find_spec("aiohttp") is None:
        raise ConfigError(
            "nats.url is a WebSocket address, for which the package aiohttp is missing: install it beside this program "
            "(pip install aiohttp), or use a nats:// or tls:// address"
        )


def denied(said: str) -> Denied | None:
    """Return which permission is missing, where that is what the server says."""
    found = _DENIED.search(said)
    return None if found is None else Denied(found[1].lower(), found[2].lower())


def refusal(error: BaseException) -> str | None:
    """Say of a server what no further attempt can mend, where the error is of that kind: nats-py would try for ever."""
    if isinstance(error, NotEncrypted):
        return (
            "offers no encryption, which tls://, tls_ca or tls_cert ask for; nothing was sent to it: turn TLS on at the server, "
            "or, where the way to it is safe, use nats:// without TLS files"
        )
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "answers in clear where the TLS handshake is due: take tls_first out, or set `handshake_first` in the server's tls block"
    said = reason(error)
    remedy = "check nats.creds, nats.nkey, nats.user and nats.password, nats.token or nats.jwt"
    return f"refuses the credentials: {said}; {remedy}" if any(word in said.lower() for word in _REFUSED) else None


def reason(error: BaseException) -> str:
    """Put an error into few words."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text, "Connect call failed", does not say why
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removeprefix("nats: ").strip(" '") or type(error).__name__


def _tls(options: NatsOptions) -> ssl.SSLContext | None:
    """Build the TLS context where one is configured; otherwise nats-py uses the system's for `tls://`."""
    if options.tls_ca is None and options.tls_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ValueError) as error:
        raise BusLost(f"the TLS files for NATS cannot be used: {error}") from error
    return context
