"""The disk is full, or may not be written: the worker takes nothing in, says so, and goes on by itself once there is room."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.stage import Stage
from tests.e2e.test_kills import fetched, told
from tests.eventually import eventually
from tests.faults.disk import Disk, mounted
from tests.faults.house import FaultyStage, House
from tests.faults.report import Row
from tests.faults.test_disk_errors import BROKEN, REFUSED, files
from tests.faults.test_kill_at_every_call import chosen
from tests.faults.tracing import most_by_one_thread, require_strace, tracing
from tests.faults.witness import Witness
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("disk")]

FULL_FOR = 3.0
Record = Callable[[Row], None]


class OnDisk(Stage):
    """A stage whose database lies on a disk of its own."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        super().__init__(folder)
        self._disk = disk

    @property
    def path(self) -> Path:
        """The database file."""
        return self._disk.place / "flows.db"

    async def readiness(self, wanted: int, *, within: float) -> float:
        """Return after how many seconds `/readyz` answered so."""
        began = time.monotonic()

        async def there() -> bool:
            return await fetched(f"{self.ready['http']}/readyz") == wanted

        await eventually(there, within=within)
        return time.monotonic() - began


@pytest.mark.scenario("disk-full")
async def test_a_full_disk_stops_the_intake_until_there_is_room_and_nothing_is_lost(
    tmp_path: Path, dice: random.Random, tier: Tier, record: Record
) -> None:
    cycles, back, loudest = tier(quick=1, all=3, nightly=20), [], 0.0
    with mounted(tmp_path, size=32) as disk:
        stage = OnDisk(tmp_path, disk)
        async with stage:
            kate = await stage.agent("kate")
            witness = Witness(kate)
            async with witness:
                for _ in range(cycles):
                    await witness.more(dice.randint(1, 60))
                    disk.fill()
                    await stage.readiness(503, within=20)
                    before, began = lines(stage), time.monotonic()
                    await eventually(lambda: time.monotonic() > began + FULL_FOR, within=60)  # noqa: B023  called here only
                    loudest = max(loudest, (lines(stage) - before) / (time.monotonic() - began))
                    assert stage.running
                    disk.free()
                    freed = time.monotonic()
                    await witness.more(1)
                    await stage.readiness(200, within=20)
                    back.append(time.monotonic() - freed)
            bad = await checks.violations(stage, kate, accepted=witness.accepted)
            with stage.database() as database:
                lost = witness.missing(database, 0)
    note = f"{loudest:.1f} log lines a second while full"
    record(Row(scenario="disk-full", seed=SEED, faults=cycles, acknowledged=len(witness.told), lost=len(lost), back=back, note=note))
    assert lost == []
    assert bad == []
    assert max(back) <= 5
    assert loudest <= 1


def lines(stage: Stage) -> int:
    """Count the lines that the worker has logged."""
    return len(stage.logs()[-1].read_text(encoding="utf-8").splitlines())


FIRST = (1, 2, 3)
MOST_KILLS = 4
"""One more, and the message that is first in line may have been begun five times: it would be given up (ARCHITECTURE 3)."""


@pytest.mark.full
@pytest.mark.scenario("disk-full-at-start")
async def test_a_worker_that_finds_the_disk_full_at_its_start_says_so_in_one_line_and_ends_with_74(
    tmp_path: Path, dice: random.Random, tier: Tier, record: Record
) -> None:
    require_strace()
    row = Row(scenario="disk-full-at-start", seed=SEED, runs=0, note="pwrite64 and ftruncate fail with ENOSPC from the k-th on")
    async with House(tmp_path) as house:
        stage = house.stage()
        stage.under = [tracing(house.folder / "killed.log", "pwrite64", inject="signal=SIGKILL:when=100")]
        stage.ends = frozenset()
        accepted = await house.interrupted(stage)
        log = house.folder / "counted.log"
        stage.under = [tracing(log, "pwrite64", only=files(stage))]
        assert await ended(stage) is None
        await stage.kill()
        count = most_by_one_thread(log, "pwrite64")
        kills = 2
        # Every start makes its first writes. How many follow before it is ready depends on what the one before it left to do.
        for k in sorted({*FIRST, *chosen(count, tier(all=4, nightly=60), dice)}):
            stage.under = [tracing(house.folder / "full.log", "pwrite64", only=files(stage), inject=f"error=ENOSPC:when={k}+")]
            code = await ended(stage)
            row.runs, row.faults = row.runs + 1, row.faults + (code is not None)
            if code is None:
                await stage.kill()
                kills += 1
                if kills == MOST_KILLS:
                    break
                continue
            line = told(stage.logs()[-1].read_text(encoding="utf-8"))
            assert (code, "make room" in line) == (BROKEN, True), f"k = {k}: exit {code}, {line}"
        await house.finished(stage, accepted)
    record(row)
    assert row.faults, "no start found the disk full"


async def ended(stage: FaultyStage) -> int | None:
    """Start a worker; returns its exit code, None where it became ready instead."""
    await stage.begin()
    worker = stage.process
    assert worker.stdout is not None
    line = await asyncio.wait_for(worker.stdout.readline(), 20)
    if line:
        assert json.loads(line)["event"] == "ready"
        return None
    return await stage.over()


@pytest.mark.full
@pytest.mark.scenario("disk-read-only")
async def test_a_disk_that_may_not_be_written_is_refused_at_the_start_and_an_error_when_live(tmp_path: Path, record: Record) -> None:
    with mounted(tmp_path) as disk:
        stage = OnDisk(tmp_path, disk)
        async with stage:
            kate = await stage.agent("kate")
            witness = Witness(kate)
            async with witness:
                await witness.more(20)
                disk.make_read_only()
                began = time.monotonic()
                code = await stage.over()
                took = time.monotonic() - began
                said = told(stage.logs()[-1].read_text(encoding="utf-8"))
                assert (code, took < 5) == (BROKEN, True), f"exit {code} after {took:.1f} s: {said}"
                disk.unmount()
                disk.mount()  # what is in its journal has to be replayed before it can be mounted read-only
                disk.unmount()
                disk.mount("ro")
                refused = await stage.refused()
                assert refused.code == REFUSED
                assert "not readable and writable" in told(refused.stderr)
                disk.unmount()
                disk.mount()
                with stage.database() as database:
                    lost = witness.missing(database, await witness.floor())
                await stage.start()
                await witness.more(1)
            assert await checks.violations(stage, kate, accepted=witness.accepted, clean_logs=False) == []
    record(
        Row(scenario="disk-read-only", seed=SEED, faults=2, acknowledged=len(witness.told), lost=len(lost), note=f"ended in {took:.1f} s")
    )
    assert lost == []
