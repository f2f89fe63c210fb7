"""Hold the single-writer lock: `flock` on `<db>.lock`, as long as the worker runs.

Not on the database itself: closing any descriptor of it in this process would release SQLite's own locks. Not `lockf`: POSIX locks
belong to the process, and any close releases them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from nats_taskflow.errors import StoreBroken, StoreLocked, StoreRefused
from nats_taskflow.files import open_own


class WriterLock:
    """The lock file of one database, held from `acquire` to `release`.

    The kernel releases it when the process dies.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + ".lock")
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock at once. Raises `StoreLocked`, naming the process that holds it."""
        try:
            fd = open_own(self._path, os.O_RDWR | os.O_CREAT, self._owners())
        except OSError as bad:
            message = f"store.path: cannot lock {self._path}: {bad.strerror}"
            raise StoreRefused(message) from bad
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as bad:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            message = f"another worker (pid {holder}) holds the database {self._path.with_suffix('')}: stop it first, or set store.path"
            raise StoreLocked(message) from bad
        self._fd = fd
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as bad:
            self.release()
            message = f"store.path: cannot write the lock file {self._path}: {bad.strerror}; make room on its disk, then start again"
            raise StoreBroken(message) from bad

    def _owners(self) -> set[int]:
        # Besides this user only the one who owns the database may own the lock file.
        with contextlib.suppress(FileNotFoundError):
            return {self._database.stat().st_uid}
        return set()

    def release(self) -> None:
        """Release the lock.

        Idempotent. The file stays: without it two workers could lock two different files.
        """
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def holder(database: Path) -> int | None:
    """Return the id of the process that holds the lock of `database`, or None.

    It does not take the lock: to hold it even for a moment could keep a worker from starting. Where the kernel does not list locks, the
    process that wrote the file counts as long as it lives.
    """
    path = database.with_name(database.name + ".lock")
    try:
        inode, written = path.stat().st_ino, path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    try:
        table = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return int(written) if written.isdecimal() and _is_alive(int(written)) else None
    held = any(fields[1] == "FLOCK" and fields[-3].rpartition(":")[2] == str(inode) for fields in map(str.split, table.splitlines()))
    return int(written) if held and written.isdecimal() else None


def _is_alive(pid: int) -> bool:
    """Return whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
