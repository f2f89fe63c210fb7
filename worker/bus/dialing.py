"""Turn the settings of the connection into what it takes. Commands that only ask need this, and none of the rest of the worker."""

from __future__ import annotations

import msgspec

from worker.bus.options import NatsOptions
from worker.config import Nats, Secret


def nats_options(nats: Nats) -> NatsOptions:
    """Turn the settings into what the connection takes; secrets are read here, at the last moment."""
    options = NatsOptions(
        servers=tuple(map(str, nats.url)),
        user=nats.user or None,
        password=_revealed(nats.password),
        token=_revealed(nats.token),
        creds=_path(nats.creds),
        nkey_seed=_path(nats.nkey),
        tls_ca=nats.tls_ca or None,
        tls_cert=nats.tls_cert or None,
        tls_key=_path(nats.tls_key),
        connect_timeout=nats.connect_timeout.seconds,
        monitor_url=nats.monitor_url or None,
    )
    return msgspec.structs.replace(options, inbox_prefix=nats.inbox_prefix) if nats.inbox_prefix else options


def _revealed(secret: Secret | None) -> str | None:
    """Return a secret's text."""
    return secret.reveal() if secret is not None else None


def _path(secret: Secret | None) -> str | None:
    """Return the path of the file that holds a secret."""
    return secret.path if secret is not None else None
