"""Say how to reach NATS, and show it without secrets."""

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
    from nats_taskflow.config import Nats, Secret


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach NATS. Paths: `creds`, `nkey_seed`, `tls_*`. Times are seconds. `jwt` and `seed` are asked for at each connect.

    `inbox_prefix`: permissions match whole tokens, so it is whole tokens; random unless one is given. `monitor_url` (http) is asked
    whether the server syncs to disk; without it nobody warns.
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
        """Show where, never with what secret: structs end up in logs."""
        return f"NatsOptions(servers={', '.join(map(public_address, self.servers))})"


def public_address(url: str) -> str:
    """Strip user, password and token from a NATS URL."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or 4222}"


def check_readable(field: str, path: str | None) -> None:
    """Refuse a credential file that cannot be read: nats-py would try it again for ever. `field`: what names it."""
    if path is None:
        return
    try:
        check_path(str(path))
    except ValueError as pasted:
        raise ConfigError(f"{field}: {pasted}") from pasted
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise BusLost(f"{field}: the credential file {path} cannot be read: {error.strerror}; check its path and permissions") from error


def nats_options(nats: Nats) -> NatsOptions:
    """Turn the settings into what a connection takes; secrets are read here, at the last moment."""
    options = NatsOptions(
        servers=tuple(map(str, nats.url)),
        user=nats.user or None,
        password=_revealed(nats.password),
        token=_revealed(nats.token),
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
    """Return what nats-py takes to log in with a user's JWT and the seed that proves it; nothing where they are not given."""
    jwt, seed = options.jwt, options.seed
    if jwt is None or seed is None:
        return {}

    def sign(nonce: str) -> bytes:
        """Sign what the server sent."""
        import nkeys  # noqa: PLC0415 - and the cryptography behind it, for those who log in with a key

        key = nkeys.from_seed(bytearray(seed().strip().encode()))
        signature = b64encode(key.sign(nonce.encode()))
        key.wipe()
        return signature

    return {"user_jwt_cb": lambda: bytearray(jwt().strip().encode()), "signature_cb": sign}


def _revealed(secret: Secret | None) -> str | None:
    """Return a secret's text."""
    return secret.reveal() if secret is not None else None


def _path(secret: Secret | None) -> str | None:
    """Return the path of the file that holds a secret."""
    return secret.path if secret is not None else None
