"""Read a connection context of the `nats` CLI (NATS ADR-21).

It is the file `<config home>/nats/context/<name>.json`. Only connection settings are taken. A context that needs what the worker cannot do
is refused, not half obeyed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nats_taskflow.config.paths import config_home, expand, exposure

_KEYS = {
    "url": "nats.url",
    "creds": "nats.creds",
    "nkey": "nats.nkey",
    "user_jwt": "nats.jwt",
    "user_seed": "nats.seed",
    "user": "nats.user",
    "password": "nats.password",
    "token": "nats.token",
    "ca": "nats.tls_ca",
    "cert": "nats.tls_cert",
    "key": "nats.tls_key",
    "tls_first": "nats.tls_first",
    "inbox_prefix": "nats.inbox_prefix",
}
_PATHS = frozenset({"creds", "nkey", "ca", "cert", "key"})
_SWITCHES = frozenset({"tls_first"})
_UNSUPPORTED = ("nsc", "jetstream_domain", "jetstream_api_prefix", "socks_proxy")
_NAME = re.compile(r"\A[^/\\\x00.][^/\\\x00]*\Z")


def read_context(name: str, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return the settings of a context (`nats.url` → text), and its exposure.

    The exposure says why they are no secret; empty: only the owner can read the file.

    Raises `ValueError` when the context is missing or cannot be obeyed.
    """
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no name of a NATS context")
    path = config_home(environ) / "nats" / "context" / f"{name}.json"
    try:
        with path.open("rb") as file:
            exposed = exposure(os.fstat(file.fileno()), path)
            content = msgspec.json.decode(file.read(), type=dict[str, Any])
    except FileNotFoundError:
        raise ValueError(f"there is no NATS context {name!r} ({path}); `nats context ls` lists them") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise ValueError(f"the NATS context {path} cannot be read ({failure})") from failure
    for key in _UNSUPPORTED:
        if content.get(key):
            raise ValueError(
                f"the NATS context {name!r} uses {key!r}, which the worker does not support; write its settings into [nats] instead"
            )
    return {_KEYS[key]: _text(name, key, content[key], environ) for key in _KEYS if content.get(key)}, exposed


def list_contexts(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the names of all contexts, and the one that is selected (or empty)."""
    folder = config_home(environ) / "nats"
    names = sorted(path.stem for path in (folder / "context").glob("*.json"))
    try:
        chosen = (folder / "context.txt").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        chosen = ""
    return names, chosen


def _text(name: str, key: str, value: object, environ: Mapping[str, str]) -> str:
    """Return one value of a context.

    `~` and variables in paths are expanded as by the nats CLI.
    """
    kind, what = (bool, "true or false") if key in _SWITCHES else (str, "text")
    if not isinstance(value, kind):
        raise ValueError(f"the NATS context {name!r} has a {key!r} that is not {what}")
    if not isinstance(value, str):
        return str(value).lower()
    if key not in _PATHS:
        return value
    path = re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda match: environ.get(match[1] or match[2], ""), value)
    return str(expand(path))
