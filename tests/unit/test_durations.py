"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.units import BadDuration, Duration, format_duration, parse_duration

SECOND = 1_000_000
DAY = 86_400 * SECOND


@pytest.mark.parametrize(
    "text,us",
    [
        ("500ms", SECOND // 2),
        ("5s", 5 * SECOND),
        ("15m", 900 * SECOND),
        ("1h 30m", 5400 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("  30d ", 30 * DAY),
        ("2weeks", 14 * DAY),
        ("1 week", 7 * DAY),
        ("7us", 7),
        ("1M", 2_630_016 * SECOND),
        ("1y", 31_557_600 * SECOND),
        ("0", 0),
        ("0s", 0),
        ("1day 2hours 3min 4sec", DAY + 7384 * SECOND),
    ],
)
def test_humantime_text_becomes_microseconds(text: str, us: int) -> None:
    assert parse_duration(text) == us


@pytest.mark.parametrize(
    "text,complaint",
    [
        ("", "empty"),
        ("   ", "empty"),
        ("5", "has no unit; write 5s"),
        ("-5s", "is negative"),
        ("1.5h", "write whole parts"),
        ("5 lightyears", "unknown unit 'lightyears'"),
        ("5S", "unknown unit 'S'"),
        ("s", "is no duration"),
        ("5s!", "is no duration"),
        ("٥s", "is no duration"),
        ("5s\n6", "is no duration"),
        ("2000y", "longer than 1000 years"),
        ("9" * 18 + "y", "longer than 1000 years"),
        ("9" * 400 + "s", "is no duration"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(text: str, complaint: str) -> None:
    with pytest.raises(BadDuration, match=complaint):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=1000 * 365 * DAY))
def test_what_is_written_reads_back_as_the_same_number(us: int) -> None:
    assert parse_duration(format_duration(us)) == us


@given(st.text(max_size=30))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        outcome: int | BadDuration = parse_duration(text)
    except BadDuration as refused:
        outcome = refused
    assert len(str(outcome).splitlines()) == 1


def test_a_negative_number_cannot_be_written() -> None:
    with pytest.raises(BadDuration, match="negative"):
        format_duration(-1)


def test_a_duration_is_an_integer_of_microseconds_that_knows_its_seconds_and_its_text() -> None:
    lasting = Duration.parse("90s")
    assert lasting == 90 * SECOND
    assert lasting.seconds == 90.0
    assert str(lasting) == "1m 30s"
    assert repr(lasting) == "Duration('1m 30s')"
