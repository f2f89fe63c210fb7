"""What somebody has put where the worker, or a command, is to write: neither followed, nor emptied, nor given away (RELIABILITY 9)."""

# ruff: noqa: ASYNC240  nothing else runs on the loop while a test looks at its files

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from nats_taskflow.bus.nats.server import EmbeddedServer, ServerRefused
from nats_taskflow.cli import taskflow
from nats_taskflow.errors import StoreLocked, StoreRefused
from nats_taskflow.files import open_own
from nats_taskflow.store.sqlite.lock import WriterLock
from nats_taskflow.store.sqlite.snapshot import schema_of
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from tests.fixtures.living import loaded
from tests.running import running
from tests.service.acting import started
from tests.unit.test_found_files import given_away

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
PRECIOUS = "mine, and nobody else's"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the user's that nobody asked to be written."""
    place = tmp_path / "home" / "precious"
    place.parent.mkdir()
    place.write_text(PRECIOUS, encoding="utf-8")
    return place


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


async def filled(path: Path) -> None:
    async with running(str(path)) as run:
        await started(run)


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "a link": lambda place, precious: place.symlink_to(precious),
    "a link to nothing": lambda place, precious: place.symlink_to(precious.with_name("nothing")),
    "a second name": lambda place, precious: place.hardlink_to(precious),
    "a pipe": lambda place, _: os.mkfifo(place),
    "a folder": lambda place, _: place.mkdir(),
}


# -- the lock -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", PLANTS)
async def test_a_lock_that_is_no_file_of_ours_is_refused_and_what_it_leads_to_stays(path: Path, precious: Path, plant: str) -> None:
    lock = path.with_name("flows.db.lock")
    PLANTS[plant](lock, precious)
    with pytest.raises(StoreRefused, match=r"flows\.db\.lock"):
        await SqliteFlowStore.open(str(path))
    assert precious.read_text(encoding="utf-8") == PRECIOUS
    assert not precious.with_name("nothing").exists()
    assert not path.exists()


@ROOT_ONLY
async def test_a_lock_of_somebody_else_is_refused_unless_the_database_is_theirs_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(path)
    lock = path.with_name("flows.db.lock")
    with monkeypatch.context() as changed:
        given_away(lock, changed)
        with pytest.raises(StoreRefused, match="belongs to"):
            WriterLock(path).acquire()
        os.chown(path, lock.stat().st_uid, -1)
        held = WriterLock(path)
        held.acquire()
        held.release()


async def test_a_lock_that_is_held_still_names_its_holder(path: Path) -> None:
    await filled(path)
    with path.with_name("flows.db.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreLocked, match=str(os.getpid())):
            await SqliteFlowStore.open(str(path))


# -- the database and what lies beside it ---------------------------------------------------------------------------------------------


@ROOT_ONLY
@pytest.mark.parametrize("plant", ["a link", "a link to nothing"])
@pytest.mark.parametrize("where", ["file", "folder"])
async def test_a_link_that_somebody_else_has_planted_is_not_followed(
    tmp_path: Path, precious: Path, plant: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything left where it leads: no database, no lock, no other mode."""
    precious.chmod(0o644)
    (folder := tmp_path / "open").mkdir()
    target = precious if plant == "a link" else precious.with_name("nothing")
    link = folder / (target.name if where == "file" else "in")
    link.symlink_to(target if where == "file" else target.parent)
    given_away(link, monkeypatch)
    folder.chmod(0o1777)
    with pytest.raises(StoreRefused, match="belongs to"):
        await SqliteFlowStore.open(str(link if where == "file" else link / target.name))
    assert [file.name for file in precious.parent.iterdir()] == ["precious"]
    assert precious.read_text(encoding="utf-8") == PRECIOUS
    assert mode(precious) == 0o644


async def test_a_link_that_anybody_could_have_planted_is_not_followed(tmp_path: Path, precious: Path) -> None:
    (folder := tmp_path / "open").mkdir()
    (link := folder / "flows.db").symlink_to(precious.with_name("nothing"))
    folder.chmod(0o777)
    with pytest.raises(StoreRefused, match="0777"):
        await SqliteFlowStore.open(str(link))
    assert [file.name for file in precious.parent.iterdir()] == ["precious"]
    folder.chmod(0o1777)
    async with running(str(link)) as run:
        await started(run)
    assert precious.with_name("nothing").exists(), "only its owner can have put it there"


async def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    for one, other in (("a.db", "b.db"), ("b.db", "a.db")):
        (tmp_path / one).symlink_to(tmp_path / other)
    with pytest.raises(StoreRefused, match="links"):
        await SqliteFlowStore.open(str(tmp_path / "a.db"))


@pytest.mark.parametrize("content", [PRECIOUS.encode(), None], ids=["a text", "another program's database"])
async def test_a_file_that_is_no_database_of_ours_keeps_its_mode_and_gets_no_lock(path: Path, content: bytes | None) -> None:
    if content is None:
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE theirs (id)")
    else:
        path.write_bytes(content)
    path.chmod(0o644)
    was = path.read_bytes()
    with pytest.raises(StoreRefused, match="untouched"):
        await SqliteFlowStore.open(str(path))
    assert (mode(path), path.read_bytes()) == (0o644, was)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("was", [0o644, 0o604, 0o666, 0o601])
async def test_a_database_that_everybody_can_open_is_mended_and_it_is_said(path: Path, was: int) -> None:
    await filled(path)
    path.chmod(was)
    with capture_logs() as log:
        async with running(str(path)) as run:
            await started(run)
            assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    (told,) = [record for record in log if record["event"] == "store.open_to_others"]
    assert told["log_level"] == "warning"
    assert told["mode"] == f"{was:04o}"
    assert told["path"] == str(path)


@pytest.mark.parametrize("part", ["-wal", "-shm"])
async def test_what_lies_beside_the_database_is_mended_too(path: Path, part: str) -> None:
    async with running(str(path)) as run:
        await started(run)
        files = {name: path.with_name(path.name + name).read_bytes() for name in ("", "-wal", "-shm")}
    for name, content in files.items():  # as a kill leaves them
        path.with_name(path.name + name).write_bytes(content)
    path.with_name(path.name + part).chmod(0o644)
    async with running(str(path)) as run:
        await started(run)
        assert mode(path.with_name(path.name + part)) == 0o600


async def test_a_mode_that_cannot_be_mended_is_refused_with_the_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(path)
    path.chmod(0o644)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", denied)
    with pytest.raises(StoreRefused, match=r"chmod 600 .*flows\.db"):
        await SqliteFlowStore.open(str(path))


@pytest.mark.parametrize("part", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("plant", ["a link", "a pipe", pytest.param("somebody else's", marks=ROOT_ONLY)])
async def test_what_somebody_put_beside_the_database_is_no_part_of_it(
    path: Path, precious: Path, part: str, plant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(path)
    content, beside = path.read_bytes(), path.with_name(path.name + part)
    with monkeypatch.context() as changed:
        if plant == "somebody else's":
            beside.write_bytes(b"")
            given_away(beside, changed)
        else:
            PLANTS[plant](beside, precious)
        with pytest.raises(StoreRefused, match=part):
            await SqliteFlowStore.open(str(path))
    assert path.read_bytes() == content
    assert precious.read_text(encoding="utf-8") == PRECIOUS


# -- files that are written under another name first ----------------------------------------------------------------------------------


def plant_parts(target: Path, precious: Path) -> None:
    """Put what an older program, or somebody, would leave under the names that are easy to guess: a link, and a file for all to write."""
    target.with_name(f".{target.name}.part").symlink_to(precious)
    open_part = target.with_name(f"{target.name}.part")
    open_part.write_bytes(b"")
    open_part.chmod(0o666)


async def test_an_export_follows_no_part_that_is_there_and_is_private(path: Path, tmp_path: Path, precious: Path) -> None:
    await filled(path)
    target = tmp_path / "flows.jsonl"
    plant_parts(target, precious)
    target.write_text("older")
    target.chmod(0o666)
    result = CliRunner().invoke(taskflow, ["db", "export", "--db", str(path), "--to", str(target)])
    assert result.exit_code == 0, result.output
    assert mode(target) == 0o600
    assert target.read_text(encoding="utf-8").count("\n") == 1
    assert precious.read_text(encoding="utf-8") == PRECIOUS
    assert not [file.name for file in tmp_path.iterdir() if file.name.endswith("-part")]


async def test_the_backup_before_a_new_schema_follows_no_part_that_is_there_and_is_private(path: Path, precious: Path) -> None:
    loaded(1, path)
    backup = path.with_name("flows.db.schema-1.backup")
    plant_parts(backup, precious)
    async with running(str(path)):
        assert mode(backup) == 0o600
    assert schema_of(backup) == 1
    assert precious.read_text(encoding="utf-8") == PRECIOUS


@pytest.mark.parametrize("plant", ["a link", "a second name"])
def test_an_installed_skill_is_put_in_the_place_of_what_is_there_not_into_it(tmp_path: Path, precious: Path, plant: str) -> None:
    place = tmp_path / "skills" / "nats-taskflow" / "SKILL.md"
    place.parent.mkdir(parents=True)
    PLANTS[plant](place, precious)
    result = CliRunner().invoke(taskflow, ["skill", "install", "--folder", str(tmp_path / "skills"), "--force"])
    assert result.exit_code == 0, result.output
    assert "flow" in place.read_text(encoding="utf-8")
    assert precious.read_text(encoding="utf-8") == PRECIOUS


@pytest.mark.parametrize("name", ["nats-server.log", "server.lock"])
@pytest.mark.parametrize("plant", ["a link", "a second name", "a pipe"])
async def test_the_embedded_server_writes_into_nothing_that_is_planted(tmp_path: Path, precious: Path, name: str, plant: str) -> None:
    PLANTS[plant](tmp_path / name, precious)
    with pytest.raises(ServerRefused, match=name):
        await EmbeddedServer(tmp_path).start()
    assert precious.read_text(encoding="utf-8") == PRECIOUS


@pytest.mark.parametrize("plant", ["a link", "a second name", "a pipe"])
async def test_the_embedded_server_puts_its_settings_in_the_place_of_what_is_planted(tmp_path: Path, precious: Path, plant: str) -> None:
    PLANTS[plant](tmp_path / "nats-server.conf", precious)
    server = EmbeddedServer(tmp_path)
    await server.start()
    await server.stop()
    assert mode(tmp_path / "nats-server.conf") == 0o600
    assert precious.read_text(encoding="utf-8") == PRECIOUS


def test_what_is_opened_is_looked_at_once_it_is_open(tmp_path: Path, precious: Path) -> None:
    for name, plant in PLANTS.items():
        place = tmp_path / name.replace(" ", "-")
        plant(place, precious)
        with pytest.raises(OSError, match=r"link|ordinary|second|directory"):
            open_own(place, os.O_RDWR)
