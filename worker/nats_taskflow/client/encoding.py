"""Encode fields as JSON, or refuse and name the value that JSON cannot hold."""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.wire import json_pointer
from nats_taskflow.wire.limits import MAX_DEPTH

_UNWRITABLE = (TypeError, ValueError, RecursionError)


def encode_json(fields: dict[str, Any]) -> bytes:
    """Return the fields as JSON.

    Raises `InvalidRequest` with the path of a value that JSON cannot hold.
    """
    try:
        return msgspec.json.encode(fields)
    except _UNWRITABLE as bad:
        path = json_pointer.spell(*_place_of_unwritable(fields))
        message = f"{path[1:]} cannot be written as JSON ({bad}): give text, numbers, True, False, None, lists and dicts of these"
        raise InvalidRequest(message, path=path) from None


def _place_of_unwritable(value: Any) -> list[str | int]:
    """Return the path to the innermost value that cannot be encoded.

    It goes no deeper than a body may nest.
    """
    way: list[str | int] = []
    while len(way) < MAX_DEPTH:
        below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        culprit = next(((key, part) for key, part in below if not _is_writable(part)), None)
        if culprit is None:
            break
        way.append(culprit[0])
        value = culprit[1]
    return way


def _is_writable(value: Any) -> bool:
    """Return whether JSON can hold the value."""
    try:
        msgspec.json.encode(value)
    except _UNWRITABLE:
        return False
    return True
