"""Read the times of a request.

A duration back from now or ahead of it, or a moment.
"""

from __future__ import annotations

import re
from datetime import datetime

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.units import Micros, parse_duration, to_micros

_DATE = re.compile(r"\A\d{4}-")


def moment_before(older_than: str | None, now: Micros) -> Micros | None:
    """Return the moment that a duration lies back from `now`.

    Raises `InvalidRequest` for text that is none.
    """
    return None if older_than is None else now - _duration("older_than", older_than)


def moment_after(due_within: str | None, now: Micros) -> Micros | None:
    """Return the moment that a duration lies ahead of `now`.

    Raises `InvalidRequest` for text that is none.
    """
    return None if due_within is None else now + _duration("due_within", due_within)


def moment_of(name: str, text: str | None, now: Micros) -> Micros | None:
    """Return the moment of a duration back from `now`, or of an RFC 3339 time.

    Raises `InvalidRequest` for other text.
    """
    if text is None:
        return None
    try:
        return to_micros(datetime.fromisoformat(text)) if _DATE.match(text) else now - parse_duration(text)
    except ValueError as bad:
        message = f"{name}: {text!r} is no time: write a duration (1h 30m), or a time with its offset (2026-11-22T14:00:00Z)"
        raise InvalidRequest(message, path=f"/{name}") from bad


def _duration(name: str, text: str) -> Micros:
    """Return a duration. Raises `InvalidRequest` for text that is none."""
    try:
        return parse_duration(text)
    except ValueError as bad:
        raise InvalidRequest(f"{name}: {bad}", path=f"/{name}") from bad
