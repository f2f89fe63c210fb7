"""Cut lists into pages, and write and read the cursors between them.

A cursor is a position in the list's order, opaque to clients: base64url of a small JSON value.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from nats_taskflow.errors import InvalidRequest

Position = int | str | list[int | str]
Item = TypeVar("Item")
PAGE_BYTES = 512 * 1024
"""How much a page may weigh: half of NATS' default max_payload, so that one more item of the largest size still fits."""

_ENCODE = msgspec.json.Encoder().encode
_DECODER = msgspec.json.Decoder(Position)
_ALPHABET = re.compile(r"\A[A-Za-z0-9_-]{1,1024}\Z")


def first_that_fit(items: Iterable[Item], budget: int) -> list[Item]:
    """Return the first items that together weigh at most `budget` bytes.

    Returns at least one, if there is one: progress must be possible.
    """
    kept: list[Item] = []
    weight = 0
    for item in items:
        weight += len(_ENCODE(item))
        if kept and weight > budget:
            break
        kept.append(item)
    return kept


def cut_page(
    rows: Sequence[tuple[int | tuple[int, int], Item]], following: int | tuple[int, int] | None, budget: int
) -> tuple[list[Item], str | None]:
    """Return the items that fit into a page, and the cursor of the next page.

    The cursor is None where there is no next page. `rows`: each item after its position. `following`: the position after which the list
    goes on once all of them are shown.
    """
    kept = first_that_fit((item for _, item in rows), budget)
    place = following if len(kept) == len(rows) else rows[len(kept) - 1][0]
    return kept, None if place is None else write_cursor(place)


def write_cursor(position: Position | tuple[int, int]) -> str:
    """Return the cursor of a position."""
    return urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def read_cursor(cursor: str) -> Position:
    """Return the position of a cursor.

    Raises `InvalidRequest` for one that this worker did not write.
    """
    written = cursor if _ALPHABET.match(cursor) else ""
    try:
        position: Position = _DECODER.decode(urlsafe_b64decode(written + "=" * (-len(written) % 4)))
        return position
    except (ValueError, RecursionError):
        raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor") from None


def read_number(cursor: str | None, start: int = 0) -> int:
    """Return the whole number in a cursor; without a cursor, `start`.

    Raises `InvalidRequest` for any other cursor.
    """
    position = start if cursor is None else read_cursor(cursor)
    if not isinstance(position, int) or not -(2**63) <= position < 2**63:
        raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor")
    return position


def read_pair(cursor: str | None) -> tuple[int, int] | None:
    """Return the two whole numbers in a cursor; without a cursor, None.

    Raises `InvalidRequest` for any other cursor.
    """
    match None if cursor is None else read_cursor(cursor):
        case None:
            return None
        case [int(first), int(second)] if all(-(2**63) <= number < 2**63 for number in (first, second)):
            return first, second
        case _:
            raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor")


def read_text(cursor: str | None) -> str | None:
    """Return the text in a cursor; without a cursor, None.

    Raises `InvalidRequest` for any other cursor.
    """
    position = None if cursor is None else read_cursor(cursor)
    if position is not None and not isinstance(position, str):
        raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor")
    return position
