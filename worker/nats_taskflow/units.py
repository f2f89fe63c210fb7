"""Turn times into integer microseconds since the Unix epoch and back: the one unit of time inside the worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

Micros = int
"""Microseconds since 1970-01-01T00:00:00Z. Integers order and compare exactly; ISO text misorders across offsets."""

SECOND: Micros = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> Micros:
    """Return `at` (aware) as microseconds since the epoch, exactly. Raises `ValueError` on a naive datetime."""
    if at.tzinfo is None:
        message = "a time without an offset is ambiguous: give an aware datetime"
        raise ValueError(message)
    return (at - _EPOCH) // _MICROSECOND


def to_datetime(at: Micros) -> datetime:
    """Return the aware UTC datetime of `at`."""
    return _EPOCH + timedelta(microseconds=at)


@lru_cache(maxsize=64)  # all that a batch changes happens at one time
def rfc3339(at: Micros) -> str:
    """Return `at` as RFC 3339 UTC text with a `Z`, with microseconds only where there are any."""
    return to_datetime(at).isoformat().replace("+00:00", "Z")


def to_the_second(at: Micros) -> str:
    """Return `at` as sentences say it: RFC 3339 in UTC, without a fraction."""
    return rfc3339(at // SECOND * SECOND)
