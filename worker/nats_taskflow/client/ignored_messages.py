"""Tell of messages that are none of ours, and of which anybody may send any number, once a minute."""

from __future__ import annotations

import asyncio
import logging

_EVERY = 60.0
"""Seconds."""


class IgnoredMessages:
    """Counts messages that are not what their subject is for."""

    def __init__(self, log: logging.Logger, kind: str) -> None:
        self._log = log
        self._kind = kind
        self._untold = 0
        self._due = 0.0

    def add(self, subject: str) -> None:
        """Count a message, and tell of those since the last line where that was long enough ago."""
        self._untold += 1
        now = asyncio.get_running_loop().time()
        if now < self._due:
            return
        self._log.warning("no %s, left out: %s (%d since the last such line)", self._kind, subject, self._untold)
        self._untold, self._due = 0, now + _EVERY
