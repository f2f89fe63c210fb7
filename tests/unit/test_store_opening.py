"""Opening and closing the database (ARCHITECTURE 3, RELIABILITY 6): what is refused is untouched, what is opened is safe."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from nats_taskflow.errors import Refusal, StoreBroken, StoreLocked, StoreRefused
from nats_taskflow.store.sqlite import opening
from nats_taskflow.store.sqlite.lock import WriterLock
from nats_taskflow.store.sqlite.opening import APPLICATION_ID
from nats_taskflow.store.sqlite.place import file_system_in
from nats_taskflow.store.sqlite.snapshot import schema_of
from nats_taskflow.store.sqlite.statements import migrations
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from tests.fixtures.living import loaded
from tests.running import running
from tests.service.acting import external, now, parked, started

Spoil = Callable[[Path], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "taskflow.db"


@asynccontextmanager
async def opened(path: Path | str) -> AsyncIterator[SqliteFlowStore]:
    store = await SqliteFlowStore.open(str(path))
    try:
        yield store
    finally:
        await store.close()


async def refusal(path: Path | str) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await SqliteFlowStore.open(str(path))
    assert "\n" not in str(refused.value)
    return refused.value


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if not file.name.endswith((".lock", "-shm"))
    }


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


async def pragma(connection: aiosqlite.Connection, name: str) -> Any:
    return next(iter(await connection.execute_fetchall(f"PRAGMA {name}")))[0]


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def unclean(path: Path, folder: Path) -> Path:
    """What a power cut leaves of a database in use: its file and its log, as they are between two transactions."""
    async with running(str(path)) as run:
        for n in range(50):
            await started(run, goal="x" * 500, state_json={"n": n})
        await run.store._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        await started(run)
        # Another process copies: this one must not close a descriptor of the file.
        command = ["cp", str(path), f"{path}-wal", str(folder)]
        await asyncio.to_thread(folder.mkdir)
        await asyncio.to_thread(subprocess.run, command, check=True)
    return folder / path.name


# --- settings


async def test_the_writer_has_every_setting_that_the_promises_need(path: Path) -> None:
    """RELIABILITY 6."""
    async with opened(path) as store:
        found = {name: await pragma(store._writer, name) for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema")}
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0}
        assert (await pragma(store._writer, "mmap_size"), await pragma(store._writer, "cell_size_check")) == (0, 1)
        assert await pragma(store._writer, "application_id") == APPLICATION_ID == 0x464C4F57
        assert await pragma(store._writer, "user_version") == len(migrations()) == 9


@pytest.mark.parametrize(
    "table, change",
    [("flows", "status = 'asleep'"), ("flows", "due_us = 1"), ("inbox", "outcome = 'lost'"), ("flow_steps", "status = 'odd'")],
)
def test_a_rule_that_was_spelled_anew_still_holds(table: str, change: str, path: Path) -> None:
    """Schema 4 rewrites CHECKs in place."""
    loaded(3, path)
    asyncio.run(_opened_once(path))
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    (sql,) = database.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    assert "status IN" not in sql
    assert "outcome IN" not in sql
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
        database.execute(f"UPDATE {table} SET {change}")  # noqa: S608  # the values above
    database.close()


async def _opened_once(path: Path) -> None:
    """Open the database, which brings it up to date, and close it."""
    async with opened(path):
        pass


async def test_a_store_in_somebody_else_s_process_changes_nothing_outside_of_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters: dict[Any, Any] = sqlite3.adapters
    for kind in (bytes, type(None)):
        monkeypatch.delitem(adapters, (kind, sqlite3.PrepareProtocol), raising=False)
    before = dict(adapters)
    await (await SqliteFlowStore.open(str(path))).close()
    assert adapters == before


async def test_the_reader_cannot_write(path: Path) -> None:
    """RELIABILITY 6: `mode=ro`, `query_only`."""
    async with opened(path) as store:
        assert store._reader is not None
        assert await pragma(store._reader, "query_only") == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await store._reader.execute_fetchall("DELETE FROM meta")


async def test_a_setting_that_does_not_take_refuses_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 6: asserted, not hoped for."""
    monkeypatch.setattr(opening, "_SETTINGS", (*opening._SETTINGS, ("synchronous = NORMAL", 2)))
    refused = await refusal(path)
    assert (refused.exit_code, "synchronous = NORMAL" in str(refused)) == (78, True)


async def test_every_table_is_strict_and_rules_are_constraints(path: Path) -> None:
    """ARCHITECTURE 3."""
    async with opened(path) as store:
        tables = await store._read("SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%'", ())
        assert {name for name, strict in tables if not strict} == set()
        assert len(tables) >= 9


@pytest.mark.parametrize("umask", [0o022, 0o000])
async def test_the_files_are_for_their_owner_only(path: Path, umask: int) -> None:
    """RELIABILITY 5: db mode 0600, whatever the umask; the log and its index too."""
    before = os.umask(umask)
    try:
        async with running(str(path)) as run:
            await started(run)
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["taskflow.db", "taskflow.db-shm", "taskflow.db-wal", "taskflow.db.lock"]
            assert {mode(file) for file in files} == {0o600}
    finally:
        os.umask(before)


async def test_a_database_whose_mode_somebody_chose_keeps_it(path: Path) -> None:
    """RELIABILITY 5: a group that may read backups is the operator's business."""
    async with opened(path):
        pass
    await asyncio.to_thread(path.chmod, 0o640)
    async with opened(path):
        assert mode(path) == 0o640


# what is refused, and stays as it was


def a_text(path: Path) -> None:
    path.write_bytes(b"these are notes, not a database\n" * 100)


def a_short_text(path: Path) -> None:
    path.write_bytes(b"hello")


def foreign(path: Path) -> None:
    sql(path, "CREATE TABLE theirs (a)", "INSERT INTO theirs VALUES (1)")


def foreign_with_id(path: Path) -> None:
    sql(path, "PRAGMA application_id = 1196444487", "CREATE TABLE theirs (a)")


def newer(path: Path) -> None:
    asyncio.run(made(path))
    sql(path, "PRAGMA user_version = 99")


async def made(path: Path) -> None:
    async with opened(path):
        pass


def torn_header(path: Path) -> None:
    asyncio.run(made(path))
    with path.open("r+b") as file:
        file.write(b"\0" * 16)


@pytest.mark.parametrize(
    "make, says",
    [
        (a_text, "not an SQLite database"),
        (a_short_text, "not an SQLite database"),
        (foreign, "another program"),
        (foreign_with_id, "another program"),
        (newer, "schema 99"),
        (torn_header, "not an SQLite database"),
    ],
)
async def test_a_file_that_is_not_ours_is_refused_untouched(path: Path, make: Spoil, says: str) -> None:
    """ARCHITECTURE 3 and CONTRACT 7: exit 78; its bytes are what they were, and nothing lies beside it."""
    await asyncio.to_thread(make, path)
    before = fingerprint(path.parent)
    refused = await refusal(path)
    assert (type(refused), refused.exit_code) == (StoreRefused, 78)
    assert says in str(refused)
    assert str(path) in str(refused)
    assert fingerprint(path.parent) == before


async def test_a_damaged_page_is_found_after_an_unclean_stop_and_nothing_is_touched(path: Path, tmp_path: Path) -> None:
    """RELIABILITY 6: `quick_check`; the log stays beside the file, for a salvage needs both."""
    copy = await unclean(path, tmp_path / "copy")
    size = copy.stat().st_size
    with copy.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xa5" * 8192)
    before = fingerprint(copy.parent)
    refused = await refusal(copy)
    assert (type(refused), refused.exit_code) == (StoreRefused, 78)
    assert "damaged" in str(refused)
    assert fingerprint(copy.parent) == before


async def test_a_refused_file_can_be_opened_once_it_is_whole_again(path: Path, tmp_path: Path) -> None:
    """A refusal holds no lock and no connection."""
    await asyncio.to_thread(a_text, path)
    await refusal(path)
    await asyncio.to_thread(path.unlink)
    async with opened(path) as store:
        assert store.epoch == 1


# unclean stops


async def test_what_was_committed_before_a_power_cut_is_there_after_it(path: Path, tmp_path: Path) -> None:
    """I-4: what was told is on disk, in the log, when the future resolves."""
    copy = await unclean(path, tmp_path / "copy")
    async with opened(copy) as store:
        assert store.recovered
        assert store.epoch == 2
        assert (await store.counts())["flows.running"] == 51


async def test_a_clean_stop_is_no_unclean_one(path: Path) -> None:
    """RELIABILITY 6: the check after an unclean stop is not paid by every start."""
    for epoch in (1, 2, 3):
        async with opened(path) as store:
            assert (store.recovered, store.epoch) == (False, epoch)
    assert not path.with_name("taskflow.db-wal").exists()


async def test_a_large_database_is_not_checked_at_start(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 6: a start with a million flows stays within seconds."""
    copy = await unclean(path, tmp_path / "copy")
    seen: list[str] = []
    ask = opening._pragma

    async def heard(connection: aiosqlite.Connection, text: str) -> Any:
        seen.append(text)
        return await ask(connection, text)

    monkeypatch.setattr(opening, "_pragma", heard)
    monkeypatch.setattr(opening, "CHECK_BELOW", 4096)
    async with opened(copy) as store:
        assert store.recovered
    assert "page_count" in seen
    assert "quick_check(1)" not in seen


# one worker at a time


async def test_a_second_worker_is_refused_at_once_and_told_who_is_there(path: Path) -> None:
    """CONTRACT 7: exit 75, naming the process."""
    async with opened(path) as store:
        async with asyncio.timeout(4):  # less than it would wait for a busy database
            refused = await refusal(path)
        assert (type(refused), refused.exit_code) == (StoreLocked, 75)
        assert f"pid {os.getpid()}" in str(refused)
        assert str(path) in str(refused)
        assert await store.get("f") is None
    async with opened(path) as store:
        assert store.epoch == 2


async def test_another_process_is_refused_too_and_a_killed_one_lets_go(path: Path) -> None:
    """RELIABILITY 6: `flock` is freed by death."""
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(path), stdout=asyncio.subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert await holder.stdout.readline() == b"open\n"
        refused = await refusal(path)
        assert (refused.exit_code, f"pid {holder.pid}" in str(refused)) == (75, True)
    finally:
        holder.kill()
        await holder.wait()
    async with opened(path) as store:
        assert (store.recovered, store.epoch) == (True, 2)


async def test_two_names_of_one_folder_are_one_database(path: Path, tmp_path: Path) -> None:
    """RELIABILITY 6: symbolic links are resolved before the lock is taken."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file.db").symlink_to(tmp_path / "real" / "t.db")
    async with opened(tmp_path / "link" / "t.db") as store:
        assert store.place == str(tmp_path / "real" / "t.db")
        assert isinstance(await refusal(tmp_path / "real" / "t.db"), StoreLocked)
        assert isinstance(await refusal(tmp_path / "file.db"), StoreLocked)


HOLD = """
import asyncio, sys
from nats_taskflow.store.sqlite.store import SqliteFlowStore
async def main():
    await SqliteFlowStore.open(sys.argv[1])
    print("open", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_the_lock_is_given_back_and_its_file_stays(path: Path) -> None:
    lock = WriterLock(path)
    lock.acquire()
    lock.release()
    lock.release()
    assert path.with_name("taskflow.db.lock").exists()
    again = WriterLock(path)
    again.acquire()
    again.release()


# --- bad places


async def test_a_bad_place_is_refused_with_what_to_change(path: Path, tmp_path: Path) -> None:
    """RELIABILITY 4 (61) and 6."""
    async with opened(path):
        pass
    os.link(path, tmp_path / "second.db")
    assert "hard links" in str(await refusal(path))
    assert "does not exist" in str(await refusal(tmp_path / "nowhere" / "t.db"))
    assert "is a folder" in str(await refusal(tmp_path))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
async def test_what_is_no_ordinary_file_is_refused_before_it_is_opened(kind: str, tmp_path: Path) -> None:
    """CONTRACT 7: a database that is refused is 78, with what to change; SQLite would call it an I/O error, which is 74 and a restart."""
    place = tmp_path / "flows.db"
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "a pipe":
                os.mkfifo(place)
            case "a socket":
                listening.bind(str(place))
            case _:
                place = Path(os.devnull)
        refused = await refusal(place)
    assert "is no ordinary file" in str(refused)
    assert refused.exit_code == 78
    assert not place.with_name(f"{place.name}.lock").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_file_that_cannot_be_written_is_refused(path: Path) -> None:
    await made(path)
    await asyncio.to_thread(path.chmod, 0o400)
    assert "not readable and writable" in str(await refusal(path))


TABLE = """\
22 1 0:20 / / rw,relatime - overlay overlay rw
30 22 0:30 / /data rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2
31 30 8:1 / /data/local rw,relatime - ext4 /dev/sda1 rw
32 22 0:31 / /with\\040blank rw master:1 propagate_from:2 - cifs //nas/share rw
33 22 0:32 / /data rw - tmpfs tmpfs rw
broken line
"""


@pytest.mark.parametrize(
    "folder, kind",
    [
        ("/", "overlay"),
        ("/home/x", "overlay"),
        ("/data", "tmpfs"),  # mounted over: the later line counts
        ("/data/x", "tmpfs"),
        ("/data/local/x", "ext4"),
        ("/database", "overlay"),
        ("/with blank/x", "cifs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_its_longest_mount_point(folder: str, kind: str) -> None:
    """RELIABILITY 6: proc(5), mountinfo."""
    assert file_system_in(TABLE, folder) == kind


async def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 6: WAL needs shared memory on one host; nothing is made there."""
    monkeypatch.setattr("nats_taskflow.store.sqlite.place.file_system", lambda _: "nfs4")
    refused = await refusal(path)
    assert (refused.exit_code, "nfs4" in str(refused)) == (78, True)
    assert list(path.parent.iterdir()) == []


# --- migrations


def steps_of(*steps: list[str]) -> Callable[[], list[list[str]]]:
    return lambda: list(steps)


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELIABILITY 6: each step and its version in one transaction; killed anywhere, it starts again from the old schema."""
    first = migrations()[0]
    monkeypatch.setattr(opening, "migrations", steps_of([*first[:5], "CREATE TABLE meta (again)", *first[5:]]))
    with pytest.raises(sqlite3.OperationalError):
        await SqliteFlowStore.open(str(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    connection.close()
    monkeypatch.undo()
    async with opened(path) as store:
        assert store.epoch == 1


async def test_a_new_schema_comes_after_a_backup_that_is_whole_and_private(path: Path) -> None:
    """RELIABILITY 6: `VACUUM INTO` beside it first; a half-written backup is never taken for one."""
    loaded(1, path)
    sql(path, "DELETE FROM held")
    sql(path, "DELETE FROM counters WHERE name = 'held'")
    sql(path, "INSERT INTO held VALUES (1, 't', 'c', 'e', '1', 0, 9000000000000000, 'k', NULL, NULL)")
    sql(path, "INSERT INTO counters VALUES ('held', 1)")
    backup = path.with_name("taskflow.db.schema-1.backup")
    left_over = path.with_name(".taskflow.db.schema-1.backup.0a1b2c3d.taskflow-part")
    left_over.write_bytes(b"what a kill in the middle of an earlier backup left")
    async with opened(path) as store:
        assert await pragma(store._writer, "user_version") == len(migrations())
        assert list(await store._read("SELECT tenant, held FROM held_tenants", ())) == [("t", 1)]
    assert mode(backup) == 0o600
    assert not left_over.exists()
    assert schema_of(backup) == 1


# the file belongs to SQLite


async def test_the_worker_never_opens_the_database_file_itself_once_sqlite_has(path: Path) -> None:
    """ARCHITECTURE 3: closing any descriptor of it drops SQLite's locks."""
    program = """
import asyncio, os, sys
opened, connected, touched = [], [], []
def heard(event, args):
    if event == "sqlite3.connect" and args[0] == sys.argv[1]:  # the writer: from now on there are locks to lose
        opened.clear()
        connected.append(args[0])
    if event in ("open", "os.open", "shutil.copyfile"):
        opened.append(os.path.basename(str(args[0])))
sys.addaudithook(heard)
from tests.fixtures.living import loaded
from tests.running import running
from tests.service.acting import started, parked, external, Inlet
async def main():
    for _ in range(2):
        async with running(sys.argv[1]) as run:
            await parked(run, external())
            await Inlet(run, stream=f"S{run.store.epoch}").reply({"n": 1})
            await run.waits.tick()
            await run.manager.list_by_owner("owner")
        touched.extend(name for name in opened if name == os.path.basename(sys.argv[1]))
    print(len(connected), len(touched), flush=True)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["2", "0"]


@pytest.mark.skipif(shutil.which("python3") is None, reason="another process is needed")
async def test_a_reader_that_comes_and_goes_does_not_take_the_log_away(path: Path) -> None:
    """ARCHITECTURE 3: with locks lost, a CLI's close would delete the live log, and with it what was committed since."""
    read = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); print(c.execute('SELECT count(*) FROM flows').fetchone()[0]); c.close()"
    log = path.with_name("taskflow.db-wal")
    async with running(str(path)) as run:
        for n in range(3):
            flow = await parked(run, external(f"c{n}"))
            before = log.stat().st_ino
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", read, str(path)], capture_output=True, text=True, check=True
            )
            assert done.stdout.strip() == str(n + 1)
            assert log.stat().st_ino == before
            assert (await now(run, flow)) == flow
    async with opened(path) as store:
        assert (await store.counts())["flows.waiting"] == 3


# --- closing


async def test_closing_twice_is_closing_once(path: Path) -> None:
    """Port: idempotent."""
    store = await SqliteFlowStore.open(str(path))
    await store.close()
    await store.close()


async def test_a_database_that_vanished_cannot_be_closed_cleanly_and_lets_the_lock_go_all_the_same(path: Path) -> None:
    """CONTRACT 7: exit 74, and the next start is not kept out by us."""
    store = await SqliteFlowStore.open(str(path))
    with pytest.MonkeyPatch.context() as patched:

        async def failing(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        patched.setattr(store._writer, "execute_fetchall", failing)
        with pytest.raises(StoreBroken) as broken:
            await store.close()
    assert broken.value.exit_code == 74
    async with opened(path) as again:
        assert again.recovered


async def test_a_database_somebody_else_is_writing_to_is_no_traceback(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRACT 7: a start that cannot take the database over ends with an exit code, not with a defect."""
    await made(path)
    settings = tuple((text.replace("5000", "50"), 50 if want == 5000 else want) for text, want in opening._SETTINGS)
    monkeypatch.setattr(opening, "_SETTINGS", settings)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused = await refusal(path)
    assert (type(refused), refused.exit_code) == (StoreLocked, 75)
    other.execute("ROLLBACK")
    other.close()
    async with opened(path):
        pass


_DIES_WHILE_WRITING = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(f"PRAGMA application_id = {sys.argv[2]}")
database.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE half (text)")
database.executemany("INSERT INTO half VALUES (?)", [("x" * 1000,)] * 1000)
os._exit(0)
"""


async def test_a_database_whose_making_was_killed_is_made_after_all(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    command = [sys.executable, "-c", _DIES_WHILE_WRITING, str(path), str(APPLICATION_ID)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    assert path.with_name("flows.db-journal").stat().st_size > 0, "SQLite has to roll back before anybody can read"
    store = await SqliteFlowStore.open(str(path))
    assert store.epoch == 1
    await store.close()


async def test_a_database_whose_worker_was_killed_while_it_folded_the_log_into_the_file_opens(path: Path, tmp_path: Path) -> None:
    killed, folded = tmp_path / "killed", tmp_path / "folded"
    killed.mkdir()
    async with running(str(path)) as run:
        for _ in range(100):
            await started(run, goal="x" * 500)
        for suffix in ("", "-wal"):  # as a kill would leave it, before anything is folded
            shutil.copy(f"{path}{suffix}", killed / f"flows.db{suffix}")
    shutil.copytree(killed, folded)
    with closing(sqlite3.connect(folded / "flows.db")) as database, database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    first_pages = (folded / "flows.db").read_bytes()[: 2 * 4096]  # they are written first, and tell of pages that are not there yet
    with (killed / "flows.db").open("r+b") as file:
        file.write(first_pages)
    async with opened(killed / "flows.db") as store:
        assert store.recovered
        assert sum((await store.counts()).values()) >= 100
