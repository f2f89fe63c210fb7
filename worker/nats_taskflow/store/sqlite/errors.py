"""Translate SQLite's errors into what becomes of the work.

It is done again later, or one by one, or the worker starts again from disk.
"""

from __future__ import annotations

import sqlite3

from nats_taskflow.errors import StoreBroken, Unavailable
from nats_taskflow.store.port import ConstraintViolated

_LATER = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT}
_BROKEN = {
    sqlite3.SQLITE_IOERR: "an I/O error",
    sqlite3.SQLITE_CORRUPT: "damage in the database file",
    sqlite3.SQLITE_NOTADB: "damage in the database file",
    sqlite3.SQLITE_READONLY: "a database that became read-only",
    sqlite3.SQLITE_CANTOPEN: "a database file that cannot be opened any more",
}


def translate_errors(error: sqlite3.Error) -> Exception:
    """Return the error that says what to do about `error`.

    A defect of ours is returned as it is.
    """
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintViolated(str(error))
    if primary in _LATER:
        return Unavailable(f"the database cannot take the change now: {error}", full=primary == sqlite3.SQLITE_FULL)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        message = f"the database's index (-shm) cannot grow ({error}): make room if its disk is full, then start again; the start checks it"
        return StoreBroken(message)
    if primary in _BROKEN:
        # After an EIO on commit nobody knows what is on disk: never retry, read it again (RELIABILITY 6).
        return StoreBroken(f"the database stopped on {_BROKEN[primary]} ({error}): start again to recover from disk; the start checks it")
    return error
