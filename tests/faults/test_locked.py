"""Other processes at the database: they hold its lock, keep its log from being folded in, read it, copy it (RELIABILITY 3, 14 to 16)."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.stage import Agent, Stage, encoded, in_order
from tests.eventually import eventually
from tests.faults.disturbing import at_work, holding, loaded
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

LOG_LIMIT = 64 * 1024 * 1024
Record = Callable[[Row], None]
READER = """
import sqlite3, sys, time
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN")
other.execute("SELECT count(*) FROM flow_events").fetchone()
print("reading", flush=True)
time.sleep(600)
"""


@pytest.mark.full
@pytest.mark.scenario("busy")
async def test_a_write_lock_held_by_another_process_delays_and_loses_nothing(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    # The last is longer than the busy timeout.
    holds = [*(dice.uniform(0.1, 3) for _ in range(tier(all=2, nightly=19))), dice.uniform(5.5, 8)]
    back: list[float] = []
    async with loaded(stage, dice, kate, rate=6) as load:
        for seconds in holds:
            with holding(stage.path, "BEGIN IMMEDIATE"):
                await asyncio.sleep(seconds)
            back.append(await at_work(kate, load.ledger))
    found = await verdict(stage, load, kate, at_least=50)
    assert not any("BUSY_SNAPSHOT" in log.read_text(encoding="utf-8") for log in stage.logs())
    record(found.row("busy", faults=len(holds), back=back, note=f"held for up to {max(holds):.1f} s"))
    assert found.bad == []
    assert max(back) < 10


@pytest.mark.full
@pytest.mark.scenario("checkpoint-starvation")
async def test_the_log_is_bounded_again_after_a_reader_that_held_it_open_is_gone(stage: Stage, kate: Agent, record: Record) -> None:
    log = stage.path.with_name("flows.db-wal")
    flow_id = await kate.start()
    reader = await asyncio.create_subprocess_exec(sys.executable, "-c", READER, str(stage.path), stdout=asyncio.subprocess.PIPE)
    assert reader.stdout is not None
    assert await reader.stdout.readline() == b"reading\n"

    async def advance(number: int) -> None:
        body = {"flow_id": flow_id, "patch": {"big": "x" * 200_000, "n": number}}
        await kate.insist("taskflow.cmd.kate.advance", encoded(body), {"Nats-Msg-Id": f"a-{number}"})

    def size() -> int:
        return log.stat().st_size

    number = 0
    while size() <= LOG_LIMIT + LOG_LIMIT // 4:
        assert number < 2000, f"the log does not grow: {size()}"
        await in_order([lambda n=n: advance(n) for n in range(number, number + 20)], at_once=5)  # type: ignore[misc]  # mypy: default in lambda
        number += 20
        await kate.outcome(f"a-{number - 1}", within=30)
    grown = size()
    reader.send_signal(signal.SIGKILL)
    await reader.wait()
    await advance(number)
    await kate.outcome(f"a-{number}")
    number += 1
    await advance(number)
    await kate.outcome(f"a-{number}")
    await eventually(lambda: size() <= LOG_LIMIT, within=30)
    assert (await kate.flow(flow_id))["revision"] == number + 1 + 1  # created, started, and advance 0 to number
    assert await stage.stop() == 0
    assert not log.exists()
    record(
        Row(
            scenario="checkpoint-starvation",
            seed=0,
            faults=1,
            acknowledged=number,
            note=f"log {grown >> 20} MiB under the reader, then ≤ 64",
        )
    )


@pytest.mark.scenario("cli-reads")
async def test_backups_from_the_command_line_while_the_worker_works_leave_its_log_alone(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record, tmp_path: Path
) -> None:
    """The log that a CLI's close once deleted under the worker: everything written to it afterwards was lost (ARCHITECTURE 3)."""
    runs = tier(quick=2, all=6, nightly=100)
    log = stage.path.with_name("flows.db-wal")
    inode = log.stat().st_ino
    async with loaded(stage, dice, kate, rate=6) as load:
        for _ in range(runs):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nats_taskflow", "db", "backup", "--force", str(tmp_path / "copy.db")),
                env=stage.environment(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            _, err = await process.communicate()
            assert (process.returncode, err) == (0, b"")
            assert log.stat().st_ino == inode
    await stage.kill()
    assert log.stat().st_ino == inode
    await stage.start()
    found = await verdict(stage, load, kate, at_least=20)
    record(found.row("cli-reads", faults=runs, note="taskflow db backup under load, then SIGKILL; same log throughout"))
    assert found.bad == []
