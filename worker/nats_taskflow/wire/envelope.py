"""Take off the reference system's bus envelope (CONTRACT 5).

It is `{id, timestamp, topic, source, session_id, payload}`. An object is an envelope if it has exactly these keys (`session_id` may be
missing): no message of ours or of a delegate is taken for one. Its topic, source and session are not believed: the subject is the identity.
A byte order mark before the body, which .NET and PowerShell write, is taken off as well (RFC 8259, 8.1).
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Sized
from typing import Any, Protocol

import msgspec

from nats_taskflow.wire import limits

_NEEDED = frozenset({"id", "timestamp", "topic", "source", "payload"})
_ALL = _NEEDED | {"session_id"}


class _Keys(Iterable[str], Sized, Protocol):
    """A decoded or an undecoded object: both have keys."""


class Opened(msgspec.Struct, frozen=True):
    """A body without its envelope: its undecoded fields, and their bytes."""

    body: bytes
    top: limits.TopLevel


def is_envelope(keys: _Keys) -> bool:
    """Return whether an object with these keys is the envelope."""
    return 5 <= len(keys) <= 6 and _NEEDED <= set(keys) <= _ALL  # noqa: PLR2004 - with and without session_id


def open_request(body: bytes) -> Opened:
    """Check a body against the limits, and take its envelope off.

    Raises as `limits.decode_any` does.
    """
    body = body.removeprefix(BOM_UTF8)
    top = limits.check(body)
    if not is_envelope(top):
        return Opened(body, top)
    limits.decode_any(body)  # no typed decoder reads the envelope itself, and one that cannot be read is refused all the same
    inner = bytes(top["payload"])
    return Opened(inner, limits.top_level(inner))


def open_value(body: bytes) -> tuple[Any, str | None]:
    """Return the JSON value of a body without its envelope, and the envelope's id.

    Raises as `limits.decode_any` does.
    """
    body = body.removeprefix(BOM_UTF8)
    value = limits.decode_any(body)
    if not isinstance(value, dict):
        return value, None
    top = limits.top_level(body)
    if not is_envelope(value):
        return value, None
    payload, envelope_id = value["payload"], value["id"]
    if isinstance(payload, dict):
        limits.top_level(bytes(top["payload"]))
    return payload, envelope_id if isinstance(envelope_id, str) else None
