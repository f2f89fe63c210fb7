"""Options of a NATS connection, and the meaning of nats-py's error texts.

Shared by worker and client, and therefore light.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from nats_taskflow.errors import BusLost, ConfigError
from nats_taskflow.secret_paths import check_path

if TYPE_CHECKING:
    from nats_taskflow.config import NatsConfig, Secret
import importlib.util
import os
import re
import ssl
from typing import NamedTuple

from nats_taskflow.bus.nats.client import NotEncrypted


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach NATS.

    `creds`, `nkey_seed` and `tls_*` are paths. Times are seconds. `jwt` and `seed` are called at each connect. `inbox_prefix` is whole
    tokens, since permissions match whole tokens; the default is random. `monitor_url` (http) tells whether the server syncs to disk;
    without it, there is no warning.
    """

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds: str | None = None
    nkey_seed: str | None = None
    jwt: Callable[[], str] | None = None
    seed: Callable[[], str] | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_first: bool = False
    name: str = "taskflow-worker"
    inbox_prefix: str = msgspec.field(default_factory=lambda: f"_INBOX.{secrets.token_hex(8)}")
    connect_timeout: float = 5.0
    ping_interval: float = 10.0
    publish_timeout: float = 5.0
    monitor_url: str | None = None

    def __repr__(self) -> str:
        """Show the servers only: structs end up in logs, and secrets must not."""
        return f"NatsOptions(servers={', '.join(map(public_address, self.servers))})"


def public_address(url: str) -> str:
    """Return a NATS URL without user, password and token."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or 4222}"


def check_readable(field: str, path: str | None) -> None:
    """Raise `ConfigError` for a credential file that cannot be read.

    nats-py would try for ever. `field` is the file's option.
    """
    if path is None:
        return
    try:
        check_path(str(path))
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise BusLost(f"{field}: the credential file {path} cannot be read: {error.strerror}; check its path and permissions") from error


def nats_options(nats: NatsConfig) -> NatsOptions:
    """Build the options from the settings. Secrets are read here, at the last moment."""
    options = NatsOptions(
        servers=tuple(map(str, nats.url)),
        user=nats.user or None,
        password=_reveal(nats.password),
        token=_reveal(nats.token),
        creds=_path(nats.creds),
        nkey_seed=_path(nats.nkey),
        jwt=nats.jwt.reveal if nats.jwt is not None else None,
        seed=nats.seed.reveal if nats.seed is not None else None,
        tls_ca=nats.tls_ca or None,
        tls_cert=nats.tls_cert or None,
        tls_key=_path(nats.tls_key),
        tls_first=nats.tls_first,
        connect_timeout=nats.connect_timeout.seconds,
        monitor_url=nats.monitor_url or None,
    )
    return msgspec.structs.replace(options, inbox_prefix=nats.inbox_prefix) if nats.inbox_prefix else options


def jwt_login(options: NatsOptions) -> dict[str, Any]:
    """Return nats-py's arguments to log in with a user's JWT and its seed, if any."""
    jwt, seed = options.jwt, options.seed
    if jwt is None or seed is None:
        return {}

    def sign(nonce: str) -> bytes:
        """Sign the server's nonce with the seed."""
        import nkeys  # noqa: PLC0415 - and the cryptography behind it, for those who log in with a key

        key = nkeys.from_seed(bytearray(seed().strip().encode()))
        signature = b64encode(key.sign(nonce.encode()))
        key.wipe()
        return signature

    return {"user_jwt_cb": lambda: bytearray(jwt().strip().encode()), "signature_cb": sign}


def _reveal(secret: Secret | None) -> str | None:
    return secret.reveal() if secret is not None else None


def _path(secret: Secret | None) -> str | None:
    return secret.path if secret is not None else None


_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
_REFUSED = ("authorization", "authentication")


class Denial(NamedTuple):
    """A missing permission, to `publish` or for a `subscription`.

    The subject is in lower case.
    """

    what: str
    subject: str


def arguments(options: NatsOptions, *, reconnect_wait: float) -> dict[str, Any]:
    """Return the arguments of `Client.connect`, without the callbacks.

    Raises `BusLost` for files that cannot be read, `ConfigError` for addresses that can never work and for secrets in place of their
    paths: nats-py would try for ever.
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
        "max_outstanding_pings": 1,  # a dead peer is noticed within two intervals; by default, in six minutes
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


def read_denial(text: str) -> Denial | None:
    """Return which permission is missing, if that is what an error text says."""
    match = _DENIED.search(text)
    return None if match is None else Denial(match[1].lower(), match[2].lower())


def refusal(error: BaseException) -> str | None:
    """Return why a server is unusable, if no further attempt can help.

    nats-py would try for ever.
    """
    if isinstance(error, NotEncrypted):
        return (
            "offers no encryption, which tls://, tls_ca or tls_cert ask for; nothing was sent to it: turn TLS on at the server, "
            "or, where the way to it is safe, use nats:// without TLS files"
        )
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "answers in clear where the TLS handshake is due: take tls_first out, or set `handshake_first` in the server's tls block"
    text = reason(error)
    remedy = "check nats.creds, nats.nkey, nats.user and nats.password, nats.token or nats.jwt"
    return f"refuses the credentials: {text}; {remedy}" if any(word in text.lower() for word in _REFUSED) else None


def reason(error: BaseException) -> str:
    """Return an error in a few words."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text, "Connect call failed", does not say why
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removeprefix("nats: ").strip(" '") or type(error).__name__


def _tls(options: NatsOptions) -> ssl.SSLContext | None:
    """Return the TLS context, if one is configured.

    Otherwise nats-py uses the system's for `tls://`.
    """
    if options.tls_ca is None and options.tls_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ValueError) as error:
        raise BusLost(f"the TLS files for NATS cannot be used: {error}") from error
    return context
