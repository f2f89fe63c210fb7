"""Copy a live database: whole, checked and on disk, or not at all (RELIABILITY 6).

Another process has to do it, never the worker's, nor plain `open`: closing a descriptor of the file there would release SQLite's locks.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from nats_taskflow.config.paths import resolve_or_refuse
from nats_taskflow.errors import StoreRefused
from nats_taskflow.files import partial_name, publish_file
from nats_taskflow.store.sqlite.opening import APPLICATION_ID, refuse_newer
from nats_taskflow.store.sqlite.place import check_place
from nats_taskflow.store.sqlite.statements import statements

_STEP = 1000
"""Pages copied at a time: 4 MB."""

_PARTS = ("", "-wal", "-shm", "-journal", ".lock")


class BackupResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was copied, and where to."""

    copy: Path
    size: int
    flows: int
    schema: int
    seconds: float


def back_up(database: str, copy: Path, *, force: bool = False) -> BackupResult:
    """Copy the database at `database` to `copy`; blocks.

    Raises `FileExistsError` where `copy` is there already and `force` is not given, or is the database itself; `StoreRefused` for a file
    that is no database of ours, is damaged, or cannot be copied.
    """
    source = check_place(database)
    if not source.exists():
        raise StoreRefused(f"store.path: {source} does not exist: there is nothing to back up")
    copy = resolve_or_refuse(copy)
    if copy in {source.with_name(source.name + part) for part in _PARTS}:
        raise FileExistsError(f"{copy} is the database itself: name another file")
    _refuse_existing(copy, "exists", force=force)
    began = time.monotonic()
    try:
        with partial_name(copy) as part:
            flows, schema = _fill(source, part)
            _refuse_existing(copy, "was made meanwhile", force=force)
            publish_file(part, copy)
    except sqlite3.Error as bad:
        raise StoreRefused(f"{source} cannot be backed up to {copy}: {bad}") from bad
    except FileExistsError:
        raise
    except OSError as bad:
        raise StoreRefused(f"{source} cannot be backed up to {copy}: {bad.strerror}") from bad
    return BackupResult(copy=copy, size=copy.stat().st_size, flows=flows, schema=schema, seconds=time.monotonic() - began)


def _refuse_existing(copy: Path, what: str, *, force: bool) -> None:
    if copy.exists() and not force:
        raise FileExistsError(f"{copy} {what}: name another file, or say --force to replace it")


def _fill(source: Path, part: Path) -> tuple[int, int]:
    """Copy into the empty file, check it, and mark it as a copy.

    Returns the number of flows and the schema.
    """
    reader = sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, isolation_level=None)
    writer = sqlite3.connect(part, isolation_level=None)
    try:
        reader.execute("PRAGMA busy_timeout = 5000")
        reader.execute("BEGIN")  # one snapshot for all steps: otherwise each commit meanwhile would begin the copy anew
        _refuse_foreign(reader, source)
        reader.backup(writer, pages=_STEP, progress=lambda *_: None)  # between two steps, Python looks for signals
        reader.execute("COMMIT")
        # The copy has the log's mode in its header; as a single file it can be moved without thinking of more.
        writer.execute("PRAGMA journal_mode = DELETE")
        result = writer.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if result != "ok":
            raise StoreRefused(f"{source} is damaged ({' '.join(str(result).split())}): no backup was made; keep the older ones")
        writer.execute(statements("upkeep")["note_restored"])
        flows = writer.execute("SELECT count(*) FROM flows").fetchone()[0]
        return flows, writer.execute("PRAGMA user_version").fetchone()[0]
    finally:
        writer.close()
        reader.close()


def _refuse_foreign(reader: sqlite3.Connection, source: Path) -> None:
    """Raise `StoreRefused` for what is no database of ours.

    Also for one that has a schema that this program does not know.
    """
    identity = reader.execute("PRAGMA application_id").fetchone()[0]
    version = reader.execute("PRAGMA user_version").fetchone()[0]
    if identity != APPLICATION_ID or version == 0:
        raise StoreRefused(f"store.path: {source} is no database of this program (application_id {identity:#x}, schema {version})")
    refuse_newer(source, version)
