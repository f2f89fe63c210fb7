"""Damage in the database's files is refused, or falls away with the end of the log; never is it taken for data (RELIABILITY 3, row 12)."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nats_taskflow.errors import FlowError, Refusal
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.store.sqlite.rows import UnreadableRow
from tests.conftest import SEED
from tests.e2e import checks
from tests.faults.report import Row
from tests.faults.test_backed_up import flaws
from tests.running import Running, running
from tests.service.acting import external, started
from tests.tiers import Tier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PARTS = ("", "-wal", "-shm")
Record = Callable[[Row], None]
Journals = dict[str, list[FlowEvent]]


async def worked(run: Running, flows: int, steps: int) -> None:
    """Do what flows do."""
    for number in range(flows):
        flow = await started(run, goal=f"goal {number}", state_json={"n": number, "text": f"{number:04}" * 500})
        for step in range(steps):
            await run.manager.update_state(flow.id, {f"k{step}": "y" * 100})
        if number % 3 == 0:
            await run.manager.set_waiting(flow.id, external(f"corr-{flow.id}"))


async def copied(path: Path, folder: Path) -> Path:
    """Copy file, log and index from another process: this one must not close a descriptor of the file."""
    await asyncio.to_thread(folder.mkdir)
    command = ["cp", *(f"{path}{part}" for part in PARTS), str(folder)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    return folder / path.name


class Scene:
    """A database as a power cut leaves it, with half of it in its log; an older copy of the same; and what it says."""

    def __init__(self, cut: Path, older: Path) -> None:
        self.cut, self.older = cut, older
        whole = cut.parent.parent / "whole"
        shutil.copytree(cut.parent, whole)
        with closing(sqlite3.connect(whole / cut.name)) as database, database:
            self.said: Journals = checks.journals(database)
        database.close()


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    path = tmp_path / "flows.db"
    async with running(str(path)) as run:
        await worked(run, 30, 2)
        await run.store._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        await worked(run, 15, 2)
        older = await copied(path, tmp_path / "older")
        await worked(run, 15, 2)
        await run.store._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        await worked(run, 6, 2)
        cut = await copied(path, tmp_path / "cut")
    return Scene(cut, older)


def flip(file: Path, dice: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def scribble(file: Path, dice: random.Random) -> None:
    """Overwrite a sector with noise."""
    content = bytearray(file.read_bytes())
    at = dice.randrange(max(1, len(content) // 512)) * 512
    content[at : at + 512] = dice.randbytes(512)
    file.write_bytes(content)


def truncate(file: Path, dice: random.Random) -> None:
    """Cut the end off, at a frame's border, or next to it."""
    frames = (file.stat().st_size - 32) // 4120
    size = 32 + 4120 * dice.randrange(frames + 1) + dice.choice((-1, 0, 1))
    file.write_bytes(file.read_bytes()[: max(0, size)])


def damage(path: Path, scene: Scene, dice: random.Random) -> str:
    """Do one kind of damage; return its name."""
    log = path.with_name(path.name + "-wal")
    kind = dice.choice(("flip db", "flip db", "noise db", "flip wal", "noise wal", "flip shm", "cut wal", "no wal", "other wal"))
    match kind.split():
        case ["flip", part]:
            flip(path if part == "db" else path.with_name(f"{path.name}-{part}"), dice)
        case ["noise", part]:
            scribble(path if part == "db" else log, dice)
        case ["cut", _]:
            truncate(log, dice)
        case ["no", _]:
            log.unlink()
        case _:
            shutil.copy(scene.older.with_name(scene.older.name + "-wal"), log)
    return kind


async def used(path: Path, said: Journals) -> str | None:
    """Open the database as a worker does and change some flows; return how it was refused, or None. Anything else is raised."""
    try:
        async with running(str(path)) as run:
            for flow_id in list(said)[::5]:
                try:
                    await run.manager.update_state(flow_id, {"touched": True})
                except FlowError:
                    continue  # this flow is gone with the log's end, or cannot be read; the others go on
    except Refusal as refused:
        if "\n" in str(refused):
            raise AssertionError("a refusal is one line") from refused
        return f"exit {refused.exit_code}"
    return None


def detected(path: Path, said: Journals) -> str | None:
    """Look for what differs from what was said; return `detected` where the checks find it, None where nothing differs."""
    with closing(sqlite3.connect(path)) as database, database:
        try:
            if flaws(database):
                return "found by the checks"
            left = checks.journals(database)
        except (sqlite3.DatabaseError, UnreadableRow, ValueError):
            return "found by the checks"
    database.close()
    for flow_id, entries in left.items():
        for was, entry in zip(said.get(flow_id, ()), entries, strict=False):
            if entry.payload.get("patch") == {"touched": True}:
                break  # the log's end fell away: from here on it is what the test did
            told = [(one.seq, one.revision, one.kind, one.payload, one.status) for one in (was, entry)]
            assert told[0] == told[1], f"{flow_id} says {told[1]}, not {told[0]}, and nobody notices"
    return None


@pytest.mark.scenario("damage")
async def test_damage_is_refused_or_found_or_falls_away_with_the_logs_end(
    scene: Scene, dice: random.Random, tier: Tier, record: Record, tmp_path: Path
) -> None:
    tries = tier(quick=20, all=40, nightly=200)
    came: Counter[str] = Counter()
    for number in range(tries):
        folder = tmp_path / f"try-{number}"
        shutil.copytree(scene.cut.parent, folder)
        path = folder / scene.cut.name
        kind = damage(path, scene, dice)
        result = await used(path, scene.said) or detected(path, scene.said) or "a clean prefix"
        came[result] += 1
        came[f"{kind}: {result}"] += 1
        if result == "exit 74":  # the next start checks the file: no loop of starts that come up and break
            again = await used(path, scene.said)
            assert again in {"exit 78", None}, f"{kind}: {again}"
        shutil.rmtree(folder)
    assert came["a clean prefix"] > 0, came
    assert came["exit 78"] + came["found by the checks"] > 0, came
    note = ", ".join(f"{count} {name}" for name, count in sorted(came.items()))
    record(Row(scenario="damage", seed=SEED, runs=tries, faults=tries, note=note))
