"""Rate-limit repeated warnings.

At most `SAME` identical and `ALIKE` similar ones a minute. The next says how many were dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any

import structlog

WINDOW = 60.0
"""Seconds."""

SAME = 10
"""Records per window of one event, for one reason, about one flow and subject."""

ALIKE = 100
"""Records per window of one event: its reasons may be worded anew each time."""

_WHY = ("reason", "why", "message", "status")
_ABOUT = ("flow_id", "subject", "outlet", "stream")


class LogRateLimit:
    """Drops warnings and errors beyond the limits.

    What is logged once per intervention or start (`info`) always passes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._events: dict[Hashable, int] = {}
        self._same: dict[Hashable, int] = {}
        self._dropped: dict[Hashable, int] = {}

    def __call__(self, writer: object, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return the record, with `suppressed` where some like it were dropped before.

        Raises `DropEvent` for one too many.
        """
        if logging.getLevelNamesMapping().get(record.get("level", method).upper(), 0) < logging.WARNING:
            return record
        now = self._clock()
        if now - self._since >= WINDOW:
            self._since = now
            self._events.clear()
            self._same.clear()
        event = (getattr(writer, "name", ""), str(record.get("event")))
        same = (*event, *(str(record[key])[:200] for key in (*_WHY, *_ABOUT) if key in record))
        if self._events.get(event, 0) >= ALIKE or self._same.get(same, 0) >= SAME:
            self._dropped[event] = self._dropped.get(event, 0) + 1
            raise structlog.DropEvent
        self._events[event] = self._events.get(event, 0) + 1
        self._same[same] = self._same.get(same, 0) + 1
        dropped = self._dropped.pop(event, 0)
        if dropped:
            record["suppressed"] = dropped
        return record
