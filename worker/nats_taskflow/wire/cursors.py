"""Write and read the cursors of pages: a position in an order, opaque to clients (base64url of a small JSON value)."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

from nats_taskflow.errors import InvalidRequest

Position = int | str | list[int | str]
_DECODER = msgspec.json.Decoder(Position)
_ALPHABET = re.compile(r"\A[A-Za-z0-9_-]{1,1024}\Z")


def write_cursor(position: Position) -> str:
    """Return the cursor of a position."""
    return urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def read_cursor(cursor: str) -> Position:
    """Return the position of a cursor. Raises `InvalidRequest` for one that this worker did not write."""
    written = cursor if _ALPHABET.match(cursor) else ""
    try:
        position: Position = _DECODER.decode(urlsafe_b64decode(written + "=" * (-len(written) % 4)))
        return position
    except (ValueError, RecursionError):
        raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor") from None


def read_number(cursor: str | None, start: int = 0) -> int:
    """Return the whole number in a cursor (`start` without one). Raises `InvalidRequest` for any other cursor."""
    position = start if cursor is None else read_cursor(cursor)
    if not isinstance(position, int) or not -(2**63) <= position < 2**63:
        raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor")
    return position


def read_text(cursor: str | None) -> str | None:
    """Return the text in a cursor (None without one). Raises `InvalidRequest` for any other cursor."""
    position = None if cursor is None else read_cursor(cursor)
    if position is not None and not isinstance(position, str):
        raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor")
    return position
