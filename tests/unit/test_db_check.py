"""`taskflow db check` on files: what is refused, what is found, and that nothing is written."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nats_taskflow.cli import taskflow
from nats_taskflow.store.invariants.findings import KEPT
from nats_taskflow.store.sqlite.lock import WriterLock, holder
from tests.running import running
from tests.service.acting import external, parked


def check(*arguments: str) -> Result:
    return CliRunner().invoke(taskflow, ["db", "check", *arguments], prog_name="taskflow")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with two hundred parked flows; nothing of the tester's own settings shows through."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "taskflow.db"

    async def made() -> None:
        async with running(str(file)) as run:
            for number in range(200):
                await parked(run, external(f"c-{number}"))

    asyncio.run(made())
    return file


def changed(path: Path, *sql: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    for statement in sql:
        database.execute(statement)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def test_the_configured_database_is_checked_and_nothing_is_written(path: Path) -> None:
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    result = check()
    assert result.exit_code == 0, result.output
    assert f"Everything holds: 200 flows in {path}" in result.output
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_a_copy_is_checked_where_nobody_may_write(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    shutil.copy(path, folder / "copy.db")
    folder.chmod(0o500)
    try:
        result = check("--db", str(folder / "copy.db"))
    finally:
        folder.chmod(0o700)
    assert result.exit_code == 0, result.output


def test_a_violation_ends_with_1_and_is_counted_beyond_what_is_shown(path: Path) -> None:
    changed(path, "UPDATE flows SET due_us = 1")
    result = check()
    assert result.exit_code == 1
    assert "I-17" in result.output
    assert "… and 180 more" in result.output
    said = json.loads(check("-o", "json").stdout)
    (violated,) = said["violations"]
    assert (said["ok"], violated["number"], violated["count"], len(violated["sentences"])) == (False, "I-17", 200, KEPT)


def test_quick_leaves_out_the_check_of_every_page(path: Path) -> None:
    changed(
        path, "PRAGMA writable_schema = ON", "DELETE FROM sqlite_schema WHERE name = 'flows_by_status'", "PRAGMA writable_schema = RESET"
    )
    assert "I-12" in check().output
    assert check("--quick").exit_code == 0


@pytest.mark.parametrize(
    "sql, why",
    [
        ("PRAGMA application_id = 7", "is no taskflow database"),
        ("PRAGMA user_version = 99", "has schema 99, this program knows up to"),
        ("PRAGMA user_version = 0", "has schema 0, this program checks"),
    ],
)
def test_a_file_of_another_kind_ends_with_78(path: Path, sql: str, why: str) -> None:
    changed(path, sql)
    result = check()
    assert result.exit_code == 78
    assert why in result.stderr


def test_no_file_no_database_and_no_memory_end_with_78(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database at all " * 100)
    for place, why in (
        (str(tmp_path / "nowhere.db"), "there is no file"),
        (str(text), "is no SQLite database"),
        (":memory:", "is gone with its worker"),
    ):
        result = check("--db", place)
        assert result.exit_code == 78, result.output
        assert why in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "nowhere.db").exists()


def test_whoever_holds_the_lock_is_named_without_touching_it(path: Path) -> None:
    assert holder(path) is None
    lock = WriterLock(path)
    lock.acquire()
    assert holder(path) == os.getpid()
    assert f"A worker (pid {os.getpid()}) is running" in check().output
    lock.release()
    assert holder(path) is None


def test_where_the_kernel_lists_no_locks_the_writer_counts_while_it_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def no_table(self: Path, *args: str | None, **more: str | None) -> str:
        if str(self) == "/proc/locks":
            raise FileNotFoundError(self)
        return read_text(self, *args, **more)

    monkeypatch.setattr(Path, "read_text", no_table)
    lock_file = path.with_name(path.name + ".lock")
    lock_file.write_text(f"{os.getpid()}\n")
    assert holder(path) == os.getpid()
    lock_file.write_text("999999999\n")
    assert holder(path) is None
