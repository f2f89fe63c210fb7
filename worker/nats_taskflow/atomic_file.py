"""Write a file whole or not at all: under a name that nobody can guess, for its owner only, then under its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from nats_taskflow.files import open_own

_UNFINISHED = ".taskflow-part"


@contextlib.contextmanager
def part_of(target: Path) -> Iterator[Path]:
    """Make the empty private file that is to become `target`, and remove it at the end where it has not; first, what killed programs left.

    Its lock tells others that somebody is at work on it. Raises `OSError` where it cannot be made.
    """
    for left in target.parent.glob(f".*{_UNFINISHED}"):
        _remove_left(left)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield part
    finally:
        _remove(part)
        os.close(descriptor)


def settled(part: Path, target: Path) -> None:
    """Put a finished file under its name, in the place of whatever has it, on disk."""
    for place in (part, part.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if place is part:
            part.rename(target)


def _remove_left(part: Path) -> None:
    """Remove an unfinished file unless somebody is at work on it. One that cannot be looked at stays: it is not in the way."""
    try:
        descriptor = open_own(part, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        _remove(part)
    finally:
        os.close(descriptor)


def _remove(part: Path) -> None:
    """Remove an unfinished file, with what SQLite has beside it."""
    for beside in ("", "-journal"):
        part.with_name(part.name + beside).unlink(missing_ok=True)
