"""`taskflow db backup`: a whole, checked copy under its name or none, and never a touch of the live database (RELIABILITY 6)."""

# ruff: noqa: ASYNC240  nothing else runs on the loop while a test looks at its files

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nats_taskflow.cli import taskflow
from nats_taskflow.doors.admin import backup_process
from nats_taskflow.doors.admin.backup_process import BackupProcess
from nats_taskflow.errors import StoreRefused, Unavailable
from nats_taskflow.store.sqlite import backup
from nats_taskflow.store.sqlite.backup import back_up
from nats_taskflow.store.sqlite.opening import APPLICATION_ID
from nats_taskflow.store.sqlite.statements import migrations
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from tests.running import running
from tests.service.acting import started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


async def filled(path: Path, flows: int = 3) -> None:
    """A database with a few flows, closed in order."""
    async with running(str(path)) as run:
        for _ in range(flows):
            await started(run)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


async def command(*arguments: str, path: Path) -> tuple[int, str, str]:
    """Run the command line as a user does, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_taskflow", "db", "backup", "--store-path", str(path), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=path.parent,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
async def test_a_database_in_use_is_copied_whole_and_stays_in_use(path: Path, tmp_path: Path) -> None:
    async with running(str(path)) as run:
        before = [await started(run) for _ in range(5)]
        log = path.with_name("flows.db-wal")
        inode = log.stat().st_ino
        code, out, err = await command("copy.db", path=path)
        assert (code, err) == (0, "")
        assert f"{tmp_path / 'copy.db'}: " in out
        assert f"5 flows, schema {len(migrations())}, checked" in out
        assert log.stat().st_ino == inode
        after = await started(run)
        assert await run.store.get(after.id) is not None
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    assert {name for name in names(tmp_path) if "copy" in name} == {"copy.db"}
    store = await SqliteFlowStore.open(str(tmp_path / "copy.db"))
    try:
        assert {row.id for _, row in (await store.list_flows(limit=10)).rows} == {flow.id for flow in before}
        assert store.restored
    finally:
        await store.close()


async def test_a_stopped_database_is_left_as_it_is(path: Path, tmp_path: Path) -> None:
    await filled(path)
    content, before = path.read_bytes(), names(tmp_path)
    assert back_up(str(path), tmp_path / "copy.db").flows == 3
    assert path.read_bytes() == content
    assert names(tmp_path) - before <= {"copy.db", "flows.db-wal", "flows.db-shm"}
    assert back_up(str(path), tmp_path / "again.db").flows == 3


async def test_what_is_there_is_replaced_by_force_only(path: Path, tmp_path: Path) -> None:
    await filled(path)
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"precious")
    runner = CliRunner()
    refused = runner.invoke(taskflow, ["db", "backup", "--store-path", str(path), str(copy)])
    assert refused.exit_code == 64
    assert "--force" in refused.output
    assert copy.read_bytes() == b"precious"
    assert runner.invoke(taskflow, ["db", "backup", "--force", "--store-path", str(path), str(copy)]).exit_code == 0
    with contextlib.closing(sqlite3.connect(copy)) as database:
        assert database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID


@pytest.mark.parametrize("part", ["", "-wal", "-shm", ".lock"])
async def test_the_database_itself_is_never_replaced(path: Path, part: str) -> None:
    await filled(path)
    with pytest.raises(FileExistsError, match="is the database itself"):
        back_up(str(path), path.with_name(path.name + part), force=True)


async def test_without_a_name_the_copy_lies_beside_the_database_under_the_time(path: Path, tmp_path: Path) -> None:
    await filled(path)
    (tmp_path / "backups").mkdir()
    runner = CliRunner()
    for dest in ((), (str(tmp_path / "backups"),)):
        assert runner.invoke(taskflow, ["db", "backup", "--store-path", str(path), *dest]).exit_code == 0
    assert len(list(tmp_path.glob("flows.db.*Z.backup"))) == 1
    assert len(list((tmp_path / "backups").glob("flows.db.*Z.backup"))) == 1


@pytest.mark.parametrize("spoil", ["missing", "foreign", "newer", "no database"])
async def test_what_is_no_database_of_ours_is_not_copied(path: Path, tmp_path: Path, spoil: str) -> None:
    if spoil == "no database":
        path.write_bytes(b"x" * 5000)
    elif spoil != "missing":
        await filled(path)
        pragma = "application_id = 7" if spoil == "foreign" else "user_version = 99"
        database = sqlite3.connect(path)
        database.execute(f"PRAGMA {pragma}")
        database.close()
    with pytest.raises(StoreRefused):
        back_up(str(path), tmp_path / "copy.db")
    assert not [name for name in names(tmp_path) if "copy" in name]


async def test_a_damaged_database_gives_no_backup_and_the_older_one_stays(path: Path, tmp_path: Path) -> None:
    await filled(path, 50)
    size = path.stat().st_size
    with path.open("r+b") as file:
        for offset in range(4096 * 3 + 200, size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 600)
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"older")
    with pytest.raises(StoreRefused):
        back_up(str(path), copy, force=True)
    assert copy.read_bytes() == b"older"
    assert not [name for name in names(tmp_path) if "part" in name]


async def test_a_backup_that_fails_half_way_leaves_nothing_behind(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(path)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backup, "_refuse_foreign", full)
    with pytest.raises(StoreRefused, match="disk is full"):
        back_up(str(path), tmp_path / "copy.db")
    assert not [name for name in names(tmp_path) if "copy" in name]


async def test_what_killed_copies_left_is_removed_and_what_is_at_work_stays(path: Path, tmp_path: Path) -> None:
    await filled(path)
    for name in (".old.db.0a1b2c3d.taskflow-part", ".old.db.0a1b2c3d.taskflow-part-journal", ".busy.db.4e5f6a7b.taskflow-part", ".a.part"):
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / ".busy.db.4e5f6a7b.taskflow-part").open("rb") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        back_up(str(path), tmp_path / "copy.db")
        assert {name for name in names(tmp_path) if "part" in name} == {".busy.db.4e5f6a7b.taskflow-part", ".a.part"}
    back_up(str(path), tmp_path / "next.db")
    assert {name for name in names(tmp_path) if "part" in name} == {".a.part"}, "of others nothing"


STOPPED_IN_THE_MIDDLE = """
import sqlite3, sys
from nats_taskflow.store.sqlite import backup

class Copied(sqlite3.Connection):
    def backup(self, target, *, progress, **how):
        def told(*step):
            print("copying", flush=True)
            sys.stdin.readline()
            progress(*step)
        super().backup(target, progress=told, **{**how, "pages": 1})

real = sqlite3.connect
sqlite3.connect = lambda *given, **how: real(*given, factory=Copied, **how)
sys.argv = ["taskflow", "db", "backup", "--store-path", sys.argv[1], "copy.db"]
from nats_taskflow.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_copy_that_is_told_to_end_leaves_nothing_behind(number: signal.Signals, path: Path, tmp_path: Path) -> None:
    await filled(path)
    pipe = asyncio.subprocess.PIPE
    program = (sys.executable, "-c", STOPPED_IN_THE_MIDDLE, str(path))
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, cwd=tmp_path)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"copying\n"
    assert [name for name in names(tmp_path) if "part" in name]
    process.send_signal(number)
    await process.communicate(b"\n" * 1000)
    assert process.returncode != 0
    assert not [name for name in names(tmp_path) if "copy" in name]


async def test_a_commit_meanwhile_neither_begins_the_copy_anew_nor_gets_into_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(path, 20)
    steps = 0

    class Copied(sqlite3.Connection):
        """A connection beside which a flow is deleted at each step of a copy."""

        def backup(self, target: sqlite3.Connection, **how: Any) -> None:
            def told(*_: int) -> None:
                nonlocal steps
                steps += 1
                beside.execute("DELETE FROM flows WHERE id = (SELECT id FROM flows LIMIT 1)")

            super().backup(target, **{**how, "pages": 20, "progress": told})

    real = sqlite3.connect
    beside = real(path, isolation_level=None)
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **how: real(*given, factory=Copied, **how))
    assert back_up(str(path), tmp_path / "copy.db").flows == 20
    assert 1 < steps < 20
    beside.close()


async def test_a_worker_makes_one_copy_at_a_time(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = "import sys; said = open(sys.argv[1]).read(); open(sys.argv[2], 'w').write(said); print(said)"
    monkeypatch.setattr(backup_process, "_command", lambda _place, copy: (sys.executable, "-c", script, str(gate), str(copy)))
    copier = BackupProcess(str(path))
    first = asyncio.ensure_future(copier.copy())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="already"):
        await copier.copy()
    await asyncio.to_thread(gate.write_text, "made")
    assert await first == "made"
    second = asyncio.ensure_future(copier.copy())
    await asyncio.to_thread(gate.write_text, "made again")
    assert await second == "made again"


NAMESAKES = (
    "worker/nats_taskflow/__init__.py",
    "worker/nats_taskflow/__main__.py",
    "sqlite3.py",
    "sqlite3/__init__.py",
    "click.py",
    "encodings.py",
    "sitecustomize.py",
)


@pytest.mark.parametrize("variables", [{}, {"PYTHONPATH": os.pathsep}, {"PYTHONPATH": "."}, {"TASKFLOW_CONFIG": "mine.toml"}], ids=str)
async def test_a_copy_on_request_runs_nothing_of_the_working_directory(
    path: Path, tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(path)
    folder, ran = tmp_path / "cloned", tmp_path / "ran"
    for name in NAMESAKES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(ran)!r}, 'a').write({name!r}); print('ok')\n", encoding="utf-8")
    (folder / "mine.toml").touch()
    monkeypatch.chdir(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = await BackupProcess(os.path.relpath(path)).copy()
    assert not ran.exists(), ran.read_text()
    (copy,) = tmp_path.glob("flows.db.*Z.backup")
    assert f"{copy}: " in line
    assert "3 flows" in line


@pytest.mark.parametrize("makes", ["nothing", "an empty file", "a link"])
async def test_a_program_that_says_ok_and_makes_no_copy_is_not_believed(
    path: Path, tmp_path: Path, makes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(path)
    making = {"nothing": "", "an empty file": "open(sys.argv[1], 'w')", "a link": f"os.symlink({str(path)!r}, sys.argv[1])"}[makes]
    script = f"import os, sys; {making}\nprint('ok')"
    monkeypatch.setattr(backup_process, "_command", lambda _place, copy: (sys.executable, "-c", script, str(copy)))
    with pytest.raises(Unavailable, match="no copy"):
        await BackupProcess(str(path)).copy()


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_copy_that_takes_too_long_is_asked_to_end_before_it_is_killed(
    deaf: bool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    ends = f"lambda *_: (open({str(said)!r}, 'w').close(), {'None' if deaf else 'sys.exit(1)'})"
    script = f"import signal, sys\nsignal.signal(signal.SIGTERM, {ends})\nwhile True: signal.pause()"
    monkeypatch.setattr(backup_process, "_command", lambda *_: (sys.executable, "-c", script))
    monkeypatch.setattr(backup_process, "_COPY_SECONDS", 2.0)
    monkeypatch.setattr(backup_process, "_CLEAN_UP_SECONDS", 0.5 if deaf else 30.0)
    with pytest.raises(Unavailable, match="within 2 s"):
        await BackupProcess(str(path)).copy()
    assert said.exists()


async def test_a_folder_that_cannot_be_written_is_one_line(path: Path, tmp_path: Path) -> None:
    await filled(path)
    result = CliRunner().invoke(taskflow, ["db", "backup", "--store-path", str(path), str(tmp_path / "no" / "such" / "folder.db")])
    assert result.exit_code == 78
    assert result.output.count("\n") == 1
