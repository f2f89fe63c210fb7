"""Exponential backoff with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Retry delays in seconds, doubling from `first` up to `last`.

    Each is shortened by up to half, at random.
    """

    def __init__(self, first: float = 0.05, last: float = 2.0) -> None:
        self._first = first
        self._last = last
        self._tries = 0

    def next(self) -> float:
        """Return how long to wait before the next try."""
        delay = min(self._first * 2.0 ** min(self._tries, 30), self._last)
        self._tries += 1
        return delay * (1 - random.random() / 2)  # noqa: S311 - spreads load; nobody gains by guessing it

    def reset(self) -> None:
        """Begin with `first` again: something worked."""
        self._tries = 0
