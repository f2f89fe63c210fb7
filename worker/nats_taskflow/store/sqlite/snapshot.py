"""Read a database file from another process; a worker may run on it.

It is read as one consistent snapshot, or only for its schema.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nats_taskflow.config.paths import resolve_or_refuse
from nats_taskflow.errors import StoreBroken, StoreRefused
from nats_taskflow.store.sqlite.lock import holder
from nats_taskflow.store.sqlite.opening import APPLICATION_ID, MEMORY, refuse_newer
from nats_taskflow.store.sqlite.statements import migrations

_SETTINGS = ("query_only = ON", "busy_timeout = 5000", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0")


class Snapshot(msgspec.Struct, frozen=True):
    """An open database.

    `worker`: the process id of the worker that runs on it, None where none does.
    """

    path: Path
    database: sqlite3.Connection
    worker: int | None


@contextmanager
def open_snapshot(place: str) -> Iterator[Snapshot]:
    """Open the database at `place` for reading, in one transaction.

    Raises `StoreRefused` with what to do; touches nothing.
    """
    path = find_database(place)
    database = sqlite3.connect(_uri(path), uri=True, isolation_level=None)
    try:
        try:
            for setting in _SETTINGS:
                database.execute(f"PRAGMA {setting}")
            _refuse_older(path, _read_schema(path, database))
            database.execute("BEGIN")
            database.execute("SELECT value FROM meta").fetchone()  # the snapshot begins with the first read
        except sqlite3.OperationalError as bad:
            raise StoreBroken(f"store.path: {path} cannot be read now ({bad}): is its folder writable for this user?") from bad
        except sqlite3.DatabaseError as bad:
            raise StoreRefused(f"store.path: {path} is no SQLite database, or a damaged one ({bad}): restore a backup") from bad
        try:
            yield Snapshot(path, database, holder(path))
        except sqlite3.DatabaseError as bad:
            if type(bad) is not sqlite3.DatabaseError:
                raise
            raise StoreRefused(f"store.path: {path} is damaged ({bad}): restore a backup") from bad
    finally:
        database.close()


def find_database(place: str) -> Path:
    """Return the real path of a database file.

    Raises `StoreRefused` where there is none.
    """
    if place == MEMORY:
        raise StoreRefused("store.path: a database in memory is gone with its worker: name a file")
    path = resolve_or_refuse(place)
    if not path.is_file():
        raise StoreRefused(f"store.path: there is no file {path}: name the database with --db, or set store.path")
    return path


def _uri(path: Path) -> str:
    # A copy without a log, in a folder that nobody may write to, is read as it stands.
    log = path.with_name(path.name + "-wal")
    standing = not log.exists() and not _writable(path.parent)
    return f"{path.as_uri()}?mode=ro{'&immutable=1' if standing else ''}"


def _writable(folder: Path) -> bool:
    # There SQLite would make its scratch files.
    return os.access(folder, os.W_OK)


def schema_of(file: Path) -> int:
    """Return which schema a closed or live database has.

    Raises `StoreRefused` for what is none of ours, or newer.
    """
    database = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    try:
        return _read_schema(file, database)
    except sqlite3.DatabaseError as bad:
        raise StoreRefused(f"store.path: {file} is no SQLite database, or cannot be read ({bad})") from bad
    finally:
        database.close()


def _read_schema(path: Path, database: sqlite3.Connection) -> int:
    """Return which schema an open database has.

    Raises `StoreRefused` for what is none of ours, or newer.
    """
    identity = database.execute("PRAGMA application_id").fetchone()[0]
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if identity != APPLICATION_ID:
        raise StoreRefused(f"store.path: {path} is no taskflow database (application_id {identity:#x}): name another file")
    refuse_newer(path, version)
    return version


def _refuse_older(path: Path, version: int) -> None:
    """Raise `StoreRefused` for a schema that the statements here are not written for."""
    if version < len(migrations()):
        raise StoreRefused(
            f"store.path: {path} has schema {version}, this program checks {len(migrations())}: "
            "check it with the version that wrote it, or start this one's worker on it once"
        )
