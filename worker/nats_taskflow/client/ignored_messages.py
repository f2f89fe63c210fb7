"""Log messages that are not ours at most once a minute: anybody may send many."""

from __future__ import annotations

import asyncio
import logging

_LOG_EVERY = 60.0
"""Seconds."""


class IgnoredMessages:
    """Counts messages that are not what their subject is for."""

    def __init__(self, log: logging.Logger, kind: str) -> None:
        self._log = log
        self._kind = kind
        self._unlogged = 0
        self._due = 0.0

    def add(self, subject: str) -> None:
        """Count a message; log the count if the last line is long enough ago."""
        self._unlogged += 1
        now = asyncio.get_running_loop().time()
        if now < self._due:
            return
        self._log.warning("no %s, left out: %s (%d since the last such line)", self._kind, subject, self._unlogged)
        self._unlogged, self._due = 0, now + _LOG_EVERY
