"""Write lines to a stream that may be closed, full or unread.

A line that cannot be written is lost and counted: a log must make nothing fail or wait.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from typing import TextIO

_PATIENCE = 50
"""Milliseconds to wait once for the reader of a full pipe. After that nobody waits, until it has read."""


class LineWriter:
    """Writes whole lines.

    `lost`: how many were lost; `unreported`: how many of them since the last one that got through.

    It bypasses Python's buffers where the stream is a file of the system, since what stays in them fails again at the exit. `out` is None
    where the process has no such stream.
    """

    def __init__(self, out: TextIO | None) -> None:
        self.out = out
        self.lost = 0
        self.unreported = 0
        self._on_lost: Callable[[int], None] = lambda _lines: None
        self._descriptor = _descriptor(out)
        self._encoding = getattr(out, "encoding", None) or "utf-8"
        self._poll = _poll(self._descriptor)
        self._patience = _PATIENCE
        self._torn = False

    def count(self, on_lost: Callable[[int], None]) -> None:
        """Call `on_lost` with the number of lines lost so far, and at each loss."""
        self._on_lost = on_lost
        if self.lost:
            on_lost(self.lost)

    def write(self, line: str) -> None:
        """Write a line, its end included. Never raises, never blocks for long."""
        try:
            self._put(line)
        except (OSError, ValueError):  # ValueError: the stream was closed in this process
            self.lost += 1
            self.unreported += 1
            self._on_lost(1)
        else:
            self.unreported = 0

    def flush(self) -> None:
        """Do nothing: lines are not buffered."""

    def _put(self, line: str) -> None:
        """Write a line. Raises `OSError` where the file takes only a part, or nothing.

        The next line then begins with a line break.
        """
        if self._descriptor is None:
            if self.out is None:
                raise BrokenPipeError
            self.out.write(line)
            self.out.flush()
            return
        rest = (f"\n{line}" if self._torn else line).encode(self._encoding, "backslashreplace")
        while rest:
            self._wait_for_room()
            rest = rest[os.write(self._descriptor, rest if self._poll is None else rest[: select.PIPE_BUF]) :]
            self._torn = bool(rest)

    def _wait_for_room(self) -> None:
        """Return once a pipe or terminal takes more.

        Raises `BlockingIOError` if its reader does not read.
        """
        if self._poll is None:
            return
        if not self._poll.poll(self._patience):
            self._patience = 0
            raise BlockingIOError
        self._patience = _PATIENCE


def _descriptor(out: TextIO | None) -> int | None:
    """Return a stream's file descriptor; None where it has none."""
    try:
        return None if out is None else out.fileno()
    except (OSError, ValueError):
        return None


def _poll(descriptor: int | None) -> select.poll | None:
    """Return the poll object for a descriptor.

    None for a regular file, which never blocks.
    """
    if descriptor is None or stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
