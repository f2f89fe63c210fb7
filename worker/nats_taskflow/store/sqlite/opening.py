"""Identify, verify, configure and migrate a database before anything uses it.

See RELIABILITY 6.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import aiosqlite
import structlog

from nats_taskflow.errors import StoreRefused
from nats_taskflow.files import open_own, partial_name, publish_file
from nats_taskflow.store.sqlite.errors import translate_errors
from nats_taskflow.store.sqlite.statements import migrations

MEMORY = ":memory:"
APPLICATION_ID = 0x464C4F57
"""ASCII `FLOW`: says that a file is ours."""
CHECK_BELOW = 1 << 30
"""Bytes: after an unclean stop a database smaller than this is checked at start; a larger one on request, to stay quick."""

_SETTINGS: tuple[tuple[str, object], ...] = (
    ("journal_mode = WAL", "wal"),
    # NORMAL loses acknowledged commits on power loss (measured: up to 818 of them); FULL none.
    ("synchronous = FULL", 2),
    ("foreign_keys = ON", 1),
    ("trusted_schema = OFF", 0),
    ("cell_size_check = ON", 1),
    # An I/O error in a mapped page is a SIGBUS, not an error.
    ("mmap_size = 0", 0),
    ("busy_timeout = 5000", 5000),
    ("temp_store = MEMORY", 2),
    ("cache_size = -16384", -16384),
    # Pages: a commit that folds the log into the file copies and syncs as much, and everybody's transactions wait for it.
    ("wal_autocheckpoint = 2500", 2500),
    ("journal_size_limit = 67108864", 67108864),
)


async def _pragma(connection: aiosqlite.Connection, text: str) -> Any:
    values = list(await connection.execute_fetchall(f"PRAGMA {text}"))
    return values[0][0] if values else None


async def identify(file: Path) -> None:
    """Check that the file is ours and not newer, without touching it.

    Raises `StoreRefused`, or `StoreBroken` for an I/O error.

    `immutable=1` takes no lock and makes no log file. The header says enough: a new database gets its ids before it has a log.
    A file that a kill left in the middle of a checkpoint makes sense only with its log: `verify` looks at that.
    """
    if not await asyncio.to_thread(_has_content, file):
        return
    connection = await aiosqlite.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        identity = await _pragma(connection, "application_id")
        version = await _pragma(connection, "user_version")
    except sqlite3.DatabaseError as bad:
        _raise_if_unreadable(bad)
        if bad.sqlite_errorcode == sqlite3.SQLITE_CORRUPT and await asyncio.to_thread(_has_content, _beside(file, "-wal")):
            return
        message = f"store.path: {file} is not an SQLite database ({bad}): it was left untouched; set another path or restore a backup"
        raise StoreRefused(message) from bad
    finally:
        await connection.close()
    _refuse_foreign(file, identity)
    refuse_newer(file, version)


def _refuse_foreign(file: Path, identity: int) -> None:
    """Raise `StoreRefused` for a database that is not ours."""
    if identity != APPLICATION_ID:
        message = (
            f"store.path: {file} is a database of another program (application_id {identity:#x}): it was left untouched; set another path"
        )
        raise StoreRefused(message)


def _raise_if_unreadable(bad: sqlite3.DatabaseError) -> None:
    # The disk failed to read the file: the file itself may be sound.
    if bad.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
        raise translate_errors(bad) from bad


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def create_private_file(file: Path) -> None:
    """Create a missing database for its owner only.

    SQLite gives its log and index the same mode (RELIABILITY 5). Call it before SQLite opens the file: later, closing a descriptor of it
    would release SQLite's locks. Raises `StoreRefused`.
    """
    if file.exists():
        return
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as bad:
        message = f"store.path: cannot create {file}: {bad.strerror}"
        raise StoreRefused(message) from bad


def guard(file: Path) -> None:
    """Close the database and SQLite's files beside it to others.

    Call it before SQLite opens them (see `create_private_file`), but only once the file is known to be ours. A mode for the group stays: a
    group that may read backups is the operator's business. Raises `StoreRefused` for a mode that cannot be changed, and for a file that
    somebody else has put there: SQLite would take a foreign log for its own, and follow a link.
    """
    try:
        owners = {file.lstat().st_uid}
    except FileNotFoundError:
        owners = set()
    for part in (file, *(_beside(file, suffix) for suffix in ("-wal", "-shm", "-journal"))):
        try:
            descriptor = open_own(part, os.O_RDWR, owners)
        except FileNotFoundError:
            continue
        except OSError as bad:
            message = (
                f"store.path: {part} cannot be used ({bad.strerror}): SQLite keeps its own there; move away what somebody has put there"
            )
            raise StoreRefused(message) from bad
        try:
            _close_to_others(part, descriptor)
        finally:
            os.close(descriptor)


def _close_to_others(part: Path, descriptor: int) -> None:
    """Leave an open file to its owner only, and log that.

    Raises `StoreRefused` where the mode cannot be changed.
    """
    bits = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if not bits & stat.S_IRWXO:
        return
    mode = f"{bits:04o}"
    try:
        os.fchmod(descriptor, 0o600)
    except OSError as bad:
        message = f"store.path: everybody can open {part} (mode {mode}), which cannot be mended ({bad.strerror}); run: chmod 600 {part}"
        raise StoreRefused(message) from bad
    structlog.get_logger("store").warning("store.open_to_others", path=str(part), mode=mode)


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def refuse_newer(place: object, version: int) -> None:
    """Raise `StoreRefused` for a schema that this program does not know yet."""
    known = len(migrations())
    if version > known:
        message = (
            f"store.path: {place} has schema {version}, this program knows up to {known}: "
            "it was left untouched; start the newer version that wrote it, or restore a backup"
        )
        raise StoreRefused(message)


async def verify(file: Path) -> None:
    """Check the pages after an unclean stop, before the first write.

    Raises `StoreRefused` with what to do, `StoreBroken` as above.

    On a connection that cannot write: closing a writer would fold the log into a file that is refused, and must stay untouched.
    """
    if not await asyncio.to_thread(_has_content, file):
        return
    await _roll_back(file)
    checker = await aiosqlite.connect(f"{file.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        version = await _pragma(checker, "user_version")
        refuse_newer(file, version)
        if await _pragma(checker, "page_count"):  # none where the making of the file was undone
            _refuse_foreign(file, await _pragma(checker, "application_id"))
        if version == 0 or not await _was_unclean(checker):
            return
        size = await _pragma(checker, "page_count") * await _pragma(checker, "page_size")
        result = await _pragma(checker, "quick_check(1)") if size < CHECK_BELOW else "ok"
    except sqlite3.DatabaseError as bad:
        _raise_if_unreadable(bad)
        result = str(bad)
    finally:
        await checker.close()
    if result != "ok":
        shown = " ".join(str(result).split())
        message = f"store.path: {file} is damaged ({shown}): restore a backup, or salvage it with `sqlite3 {file.name} .recover`"
        raise StoreRefused(message)


async def _roll_back(file: Path) -> None:
    """Let SQLite undo what a kill left half done while it created the database.

    It takes a connection that can write. A database has a rollback journal only until it has its log (WAL). The check finds what else is
    wrong with the file.
    """
    if not await asyncio.to_thread(_beside(file, "-journal").exists):
        return
    connection = await aiosqlite.connect(f"{file.as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        await _pragma(connection, "user_version")
    except sqlite3.DatabaseError as bad:
        _raise_if_unreadable(bad)
        structlog.get_logger("store").warning("not_rolled_back", why=str(bad))
    finally:
        await connection.close()


async def _was_unclean(checker: aiosqlite.Connection) -> bool:
    # The last worker stopped without closing the database.
    clean = list(await checker.execute_fetchall("SELECT value FROM meta WHERE name = 'clean'"))
    return not clean or clean[0][0] == 0


async def configure(writer: aiosqlite.Connection, *, file: bool) -> aiosqlite.Connection:
    """Apply the settings and assert that each took.

    Raises `StoreRefused` naming the one that did not.
    """
    if await _pragma(writer, "user_version") == 0:
        await writer.execute_fetchall(f"PRAGMA application_id = {APPLICATION_ID}")
    for text, wanted in _SETTINGS:
        name = text.partition(" ")[0]
        await _pragma(writer, text)
        got = await _pragma(writer, name)
        if got != wanted and (file or name not in {"journal_mode", "mmap_size"}):
            message = f"store.path: SQLite does not take the setting {text} here (it says {got!r}); the worker's promises need it"
            raise StoreRefused(message)
    return writer


def take_values_as_they_are() -> None:
    """Register an identity adapter for bytes and None, for the whole process.

    Call it only in a process that is a worker and nothing else. Without one, sqlite3 tries three failing look-ups for every such parameter
    (5 % of what a message costs).
    """
    for kind in (bytes, type(None)):
        sqlite3.register_adapter(kind, lambda value: value)


async def migrate(writer: aiosqlite.Connection, place: str) -> None:
    """Bring the schema up to date, after a backup beside the file.

    Each step runs in one transaction with its version.
    """
    version = await _pragma(writer, "user_version")
    steps = migrations()
    if 0 < version < len(steps) and place != MEMORY:
        await _keep_backup(writer, Path(f"{place}.schema-{version}.backup"))
    for number, statements in enumerate(steps[version:], start=version + 1):
        await writer.execute_fetchall("BEGIN IMMEDIATE")
        for statement in statements:
            await writer.execute_fetchall(statement)
        await writer.execute_fetchall(f"PRAGMA user_version = {number}")
        await writer.execute_fetchall("COMMIT")


async def _keep_backup(writer: aiosqlite.Connection, backup: Path) -> None:
    """Copy the database to `backup`, whole or not at all.

    A backup that is there already stays.
    """
    if await asyncio.to_thread(backup.exists):
        return
    with partial_name(backup) as part:
        await writer.execute_fetchall("VACUUM INTO ?", (str(part),))
        await asyncio.to_thread(publish_file, part, backup)  # `VACUUM INTO` does not sync what it writes
