"""Write lines to a stream that may be closed, full or read by nobody: then a line is lost and counted, and nothing else happens.

The log is nobody's reason to fail, or to wait.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from typing import TextIO

_PATIENCE = 50
"""Milliseconds to wait for the reader of a full pipe, once; from then on not at all, until it has read."""


class LineWriter:
    """Writes whole lines, past Python's buffers where the stream is a file of the system: what stays in them fails again at the exit.

    `out`: None where the process has no such stream. `untold`: how many lines were lost since the last one that got through.
    """

    def __init__(self, out: TextIO | None) -> None:
        self.out = out
        self.lost = 0
        self.untold = 0
        self._counted: Callable[[int], None] = lambda _lines: None
        self._descriptor = _descriptor(out)
        self._encoding = getattr(out, "encoding", None) or "utf-8"
        self._poll = _poll(self._descriptor)
        self._patience = _PATIENCE
        self._torn = False

    def count(self, counted: Callable[[int], None]) -> None:
        """Have `counted` called with how many lines are lost: with those lost so far now, with each other as it is lost."""
        self._counted = counted
        if self.lost:
            counted(self.lost)

    def write(self, line: str) -> None:
        """Write a line, its end included; never raises, never blocks for long."""
        try:
            self._put(line)
        except (OSError, ValueError):  # ValueError: the stream was closed in this process
            self.lost += 1
            self.untold += 1
            self._counted(1)
        else:
            self.untold = 0

    def flush(self) -> None:
        """Do nothing: a line is written at once."""

    def _put(self, line: str) -> None:
        """Write a line. Raises `OSError` where the file takes only a part, or nothing; then the next one begins on a line of its own."""
        if self._descriptor is None:
            if self.out is None:
                raise BrokenPipeError
            self.out.write(line)
            self.out.flush()
            return
        left = (f"\n{line}" if self._torn else line).encode(self._encoding, "backslashreplace")
        while left:
            self._await_room()
            left = left[os.write(self._descriptor, left if self._poll is None else left[: select.PIPE_BUF]) :]
            self._torn = bool(left)

    def _await_room(self) -> None:
        """Return when a pipe or terminal takes more. Raises `BlockingIOError` where its reader does not read."""
        if self._poll is None:
            return
        if not self._poll.poll(self._patience):
            self._patience = 0
            raise BlockingIOError
        self._patience = _PATIENCE


def _descriptor(out: TextIO | None) -> int | None:
    """Return the number of a stream's file; None where it has none."""
    try:
        return None if out is None else out.fileno()
    except (OSError, ValueError):
        return None


def _poll(descriptor: int | None) -> select.poll | None:
    """Return what tells whether a write would block; None for files, where none does."""
    if descriptor is None or stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
