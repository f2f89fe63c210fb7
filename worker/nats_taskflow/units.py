"""Microseconds since the Unix epoch, the one unit of time inside the worker.

It also reads and writes durations as people write them.

Durations have the text form of the Rust crate `humantime` (`500ms`, `15m`, `1h 30m`, `30d`, `2weeks`; a month is 30.44 days and a year
365.25), so that settings move over from the reference system unchanged.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

Micros = int
"""Microseconds since 1970-01-01T00:00:00Z. Integers order and compare exactly; ISO text misorders across offsets."""

SECOND: Micros = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> Micros:
    """Return `at` (aware) as microseconds since the epoch, exactly.

    Raises `ValueError` on a naive datetime.
    """
    if at.tzinfo is None:
        message = "a time without an offset is ambiguous: give an aware datetime"
        raise ValueError(message)
    return (at - _EPOCH) // _MICROSECOND


def to_datetime(at: Micros) -> datetime:
    """Return the aware UTC datetime of `at`."""
    return _EPOCH + timedelta(microseconds=at)


@lru_cache(maxsize=64)  # all that a batch changes happens at one time
def rfc3339(at: Micros) -> str:
    """Return `at` as RFC 3339 UTC text with a `Z`.

    With microseconds only where there are any.
    """
    return to_datetime(at).isoformat().replace("+00:00", "Z")


def to_the_second(at: Micros) -> str:
    """Return `at` as sentences say it: RFC 3339 in UTC, without a fraction."""
    return rfc3339(at // SECOND * SECOND)


_UNITS_US = {
    ("usec", "us"): 1,
    ("msec", "millis", "ms"): 1_000,
    ("seconds", "second", "secs", "sec", "s"): 1_000_000,
    ("minutes", "minute", "mins", "min", "m"): 60_000_000,
    ("hours", "hour", "hrs", "hr", "h"): 3_600_000_000,
    ("days", "day", "d"): 86_400_000_000,
    ("weeks", "week", "wks", "wk", "w"): 7 * 86_400_000_000,
    ("months", "month", "M"): 2_630_016_000_000,
    ("years", "year", "yrs", "yr", "y"): 31_557_600_000_000,
}
_US_BY_NAME = {name: amount for names, amount in _UNITS_US.items() for name in names}
_WRITTEN = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1))
_PART = re.compile(r"([0-9]{1,18})\s*([A-Za-z]+)\s*", re.ASCII)
_LONGEST_US = 1000 * _US_BY_NAME["year"]  # far below 2**63, so that `now + duration` always fits an SQLite integer


class BadDuration(ValueError):
    """The text is no duration; the message says what would be right."""


class Duration(int):
    """A length of time in whole microseconds, which prints as people write it."""

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read a duration, a sequence of `<whole number><unit>`.

        Raises `BadDuration` for other text.
        """
        return cls(parse_duration(text))

    @property
    def seconds(self) -> float:
        """Give the length in seconds, as asyncio takes it."""
        return int(self) / 1_000_000

    def __str__(self) -> str:
        return format_duration(int(self))

    def __repr__(self) -> str:
        return f"Duration({format_duration(int(self))!r})"


def parse_duration(text: str) -> int:
    """Give the microseconds in `text`; parts add up (`1h 30m`).

    Raise `BadDuration` with a sentence on anything else.
    """
    stripped = text.strip()
    if stripped == "0":
        return 0
    total, at = 0, 0
    while at < len(stripped):
        part = _PART.match(stripped, at)
        if part is None:
            raise BadDuration(_complaint(text, stripped))
        amount = _US_BY_NAME.get(part[2])
        if amount is None:
            raise BadDuration(f"unknown unit {part[2]!r} in {text!r}; use us, ms, s, m, h, d, w, M (months) or y")
        total += int(part[1]) * amount
        at = part.end()
    if not stripped:
        raise BadDuration("an empty text is no duration; write one like 500ms, 15m, 1h 30m or 30d")
    if total > _LONGEST_US:
        raise BadDuration(f"{text!r} is longer than 1000 years")
    return total


def _complaint(text: str, stripped: str) -> str:
    """Say what is wrong with a text that does not even have the form of a duration."""
    if stripped.startswith("-"):
        return f"{text!r} is negative; a duration is zero or more"
    if re.fullmatch(r"[0-9]+", stripped, re.ASCII):
        return f"{text!r} has no unit; write {stripped}s for seconds or {stripped}ms for milliseconds"
    if "." in stripped or "," in stripped:
        return f"{text!r} has a fraction; write whole parts, like 1h 30m or 1500ms"
    return f"{text!r} is no duration; write one like 500ms, 15m, 1h 30m or 30d"


def format_duration(us: int) -> str:
    """Write microseconds as a duration: `90_000_000` → `1m 30s`.

    `us` is zero or more. `parse_duration` reads the same number back.
    """
    if us < 0:
        raise BadDuration(f"{us} microseconds are negative; a duration is zero or more")
    parts = []
    for unit, amount in _WRITTEN:
        count, us = divmod(us, amount)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"
