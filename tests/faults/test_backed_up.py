"""Backups under load, and the worker on each of them: it asks again for what was acknowledged since (RELIABILITY 3, row 41)."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.stage import EVENTS, INBOUND, Agent, Stage
from tests.eventually import eventually
from tests.faults.disturbing import loaded
from tests.faults.load import PARTS, Load
from tests.faults.report import Row
from tests.faults.verdict import at_rest, unfinished
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

Record = Callable[[Row], None]
AT_ANY_MOMENT = ("I-1", "I-2", "I-3", "I-5", "I-7", "I-8", "I-9", "I-12", "I-13", "I-15", "I-16", "I-18")
"""The invariants that hold in a copy, whatever was under way when it was made."""
# Not "rounds" and "late": their commands follow replies, and replayed commands and replies have no common order (docs/backing-up.md).
IN_THE_STREAM = tuple(part for part in PARTS if part not in {"asked", "contested", "stale", "delegated", "rounds", "late"})
"""The parts that can be decided again from the stream alone: a request on `api` is in no stream, a delegate is asked anew, a
time-out between two waits is not waited for again."""


async def backed_up(stage: Stage, copy: Path) -> None:
    """Back up as an operator does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_taskflow", "db", "backup", str(copy)),
        env=stage.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b""), err.decode()
    assert str(copy) in out.decode()


def put_back(stage: Stage, copy: Path) -> None:
    """Do what docs/backing-up.md says."""
    for part in ("", "-wal", "-shm"):
        stage.path.with_name(stage.path.name + part).unlink(missing_ok=True)
    shutil.copy(copy, stage.path)


def flaws(database: sqlite3.Connection) -> list[str]:
    """Look for what may be wrong in a database by itself."""
    return checks.of_database(database, *AT_ANY_MOMENT)


def lost(database: sqlite3.Connection, load: Load, last_seq: int) -> list[str]:
    """Compare with what the clients were told is stored."""
    taken = {key.rsplit("\n", 1)[-1] for (key,) in database.execute("SELECT key FROM inbox WHERE key IS NOT NULL")}
    names = {flow_id: [str(entry.kind) for entry in entries] for flow_id, entries in checks.journals(database).items()}
    bad = [f"{operation.id} has no outcome" for operation in load.ledger.acknowledged if operation.counts and operation.id not in taken]
    places = database.execute("SELECT count(DISTINCT source_seq) FROM inbox WHERE source = ?", (INBOUND,)).fetchone()[0]
    bad += [f"{last_seq} messages are stored, {places} have an outcome"] if places != last_seq else []
    return bad + unfinished(load.parts, names)


@pytest.mark.scenario("backup-restore")
async def test_every_backup_taken_under_load_is_whole_and_the_worker_on_it_catches_up(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    copies = [stage.folder / f"backup-{number}.db" for number in range(tier(quick=1, all=3, nightly=20))]
    async with loaded(stage, dice, kate, rate=10, parts=IN_THE_STREAM) as load:
        for copy in copies:
            await asyncio.sleep(dice.uniform(0.2, 1))
            await backed_up(stage, copy)
    await at_rest(stage, load, kate)
    assert await checks.violations(stage, kate) == []
    for copy in copies:
        with closing(sqlite3.connect(copy)) as database, database:
            assert flaws(database) == []
        database.close()
    last, back, missing = (await kate.js.stream_info(INBOUND)).state.last_seq, [], []
    for copy in copies:
        put_back(stage, copy)
        with stage.database() as database:
            epoch = database.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]
            missing.append(last - len(database.execute("SELECT DISTINCT source_seq FROM inbox WHERE source_seq IS NOT NULL").fetchall()))
        began = time.monotonic()
        await stage.start()
        await eventually(kate.nothing_pending, within=60)
        back.append(time.monotonic() - began)
        assert await stage.stop() == 0
        with stage.database() as database:
            assert flaws(database) == []
            assert lost(database, load, last) == []
            assert database.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0] == epoch + 1
            assert checks.outbox_is_drained(database) == []
    assert max(missing) > 0  # else nothing was put to the test
    firsts: dict[str, int] = {}
    for sent in await stage.stream(EVENTS, kate):
        flow_id, seq = sent.json["subject"], int(sent.json["sequence"])
        assert seq <= firsts.get(flow_id, 0) + 1, f"a gap before {flow_id}:{seq}"
        firsts[flow_id] = max(firsts.get(flow_id, 0), seq)
    acked = len(load.ledger.acknowledged)
    note = f"each restored; {min(missing)} to {max(missing)} messages behind, replayed"
    record(Row(scenario="backup-restore", seed=SEED, runs=len(copies), faults=len(copies), acknowledged=acked, back=back, note=note))
