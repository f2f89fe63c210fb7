"""Virtual clock of a world in memory.

It stands still until a test moves it, and stops at everything that is due on the way.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

from nats_taskflow.testing.loop_time import LoopTime
from nats_taskflow.units import SECOND, Micros, format_duration, parse_duration, to_datetime, to_micros


def soon() -> datetime:
    """Return the next full second: when a world begins, unless a test says when.

    Agents that ask the machine for the time are then never ahead of the world.
    """
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)


class TimedWork(Protocol):
    """What the clock drives: work that falls due."""

    async def settled(self) -> None:
        """Return when nothing more happens without time passing."""

    def next_due(self) -> Micros | None:
        """Return when the next thing after now is due; None for never."""

    async def arrived(self) -> None:
        """Start what is due now."""


class Clock:
    """A virtual clock that a test moves.

    Calling it returns microseconds since the epoch, as the worker wants them.
    """

    def __init__(self, at: datetime, moved: TimedWork) -> None:
        self._us: Micros = to_micros(at)
        self._moved = moved
        self.loop = LoopTime(self)

    def __call__(self) -> Micros:
        """Return the time in microseconds since the epoch."""
        return self._us

    def __repr__(self) -> str:
        return f"<Clock at {self.now().isoformat()}>"

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        return to_datetime(self._us)

    async def advance(self, by: str | float | timedelta) -> None:
        """Let time pass: `"3d"`, `"1h 30m"`, seconds, or a `timedelta`.

        Everything that falls due on the way happens, in its order and at its time, and so does all that follows from it; when this
        returns, nothing is under way any more.
        """
        await self._go_to(self._us + _micros(by))

    async def advance_to(self, at: datetime) -> None:
        """Let time pass until `at` (aware), as `advance` does.

        Raises `ValueError` for a time that is past.
        """
        await self._go_to(to_micros(at))

    async def _go_to(self, end: Micros) -> None:
        """Move from one due time to the next, up to `end`."""
        if end < self._us:
            message = f"a clock does not go back: it is {self.now().isoformat()}, {to_datetime(end).isoformat()} was asked for"
            raise ValueError(message)
        await self._moved.settled()
        while self._us < end:
            due = self._moved.next_due()
            to = end if due is None else min(max(due, self._us + 1), end)
            by, self._us = to - self._us, to
            self.loop.move(by)
            await self._moved.arrived()
            await self._moved.settled()


def _micros(by: str | float | timedelta) -> Micros:
    """Convert a length of time to microseconds.

    Raises `ValueError` that says how to write one.
    """
    if isinstance(by, str):
        return parse_duration(by)
    if isinstance(by, timedelta):
        return by // timedelta(microseconds=1)
    return round(by * SECOND)


def shown(by: Micros) -> str:
    """Format a length of time for people: `3d 2h`, `450ms`.

    From one second on, fractions of a second are left out.
    """
    coarse = by if by < SECOND else by - by % SECOND
    return format_duration(coarse)
