"""The power fails under the database, under the broker's store, or under both: what anybody was told is still so (RELIABILITY 3, 5 to 7).

Whether the harness would see a loss is tried first: with `synchronous=NORMAL` planted, the same cuts must lose what clients were told.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.stage import WORKER, Stage
from tests.faults.disk import Disk, mounted
from tests.faults.launcher import LAUNCHER
from tests.faults.report import Row
from tests.faults.witness import Witness
from tests.ports import kept_port
from tests.standing import stand_still
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("disk")]

BROKEN = 74
Record = Callable[[Row], None]


class Powered(Stage):
    """A stage with a disk under its database, its broker, or both."""

    def __init__(self, folder: Path, disk: Disk, *, database: bool, broker: bool, program: tuple[str, ...] = WORKER) -> None:
        store = disk.place if broker else folder
        super().__init__(
            folder, server=EmbeddedServer(store / "nats", kept_port()), program=program, settings={"FLOW_SYNCHRONOUS": "NORMAL"}
        )
        self._disk = disk
        self._database, self._broker = database, broker
        self.codes: list[int] = []

    @property
    def path(self) -> Path:
        """The database file, on the disk if that is what is cut."""
        return (self._disk.place if self._database else self.folder) / "flows.db"

    async def cut(self, *, wait: bool) -> None:
        """Cut the power and put it back; the processes on the disk are gone.

        Whoever is on the disk stands still meanwhile: a sync that is under way while `EXT4_IOC_SHUTDOWN` takes the disk away succeeds
        without having written anything, in a tenth of all cuts (shown by a program that does nothing but append and sync), which no
        machine without power does. `wait`: let the worker find out by itself, where only its disk is lost. A broker is not let go on: it
        would acknowledge what it cannot store.
        """
        assert self._worker is not None
        assert self.server.pid is not None
        on_it = [self._worker.pid] * self._database + [self.server.pid] * self._broker
        for pid in on_it:
            await stand_still(pid)
        self._disk.cut()
        if self._database and wait and not self._broker:
            os.kill(self._worker.pid, signal.SIGCONT)
            began = time.monotonic()
            self.codes.append(await self._worker.wait())
            assert time.monotonic() - began < 5
        if self._database:
            await self.kill()
        if self._broker:
            await self.server.kill()
            await self.server.stop()  # lets go of the folder
        self._disk.unmount()
        self._disk.mount()
        if self._broker:
            await self.server.start()


class Cuts(msgspec.Struct):
    """What a number of cuts did."""

    cuts: int = 0
    told: int = 0
    missing: list[str] = []
    violations: list[str] = []
    back: list[float] = []


async def cut_again_and_again(stage: Powered, dice: random.Random, count: int, *, until_missing: bool = False) -> Cuts:
    """Cut at random moments under load; after each cut compare what is on the disk with what was told, then go on."""
    found = Cuts()
    async with stage:
        if until_missing:
            await stage.restart()  # the schema is in the file: what is lost now is what was told
        kate = await stage.agent("kate")
        witness = Witness(kate)
        async with witness:
            for number in range(count):
                await witness.more(dice.randint(1, 60))
                await stage.cut(wait=number % 3 == 0)
                found.cuts, found.told = found.cuts + 1, len(witness.told)
                began = time.monotonic()
                if not stage.running:
                    floor = await witness.floor()
                    with stage.database() as database:
                        found.missing += [f"cut {number}: {lost}" for lost in witness.missing(database, floor)]
                        found.missing += [
                            f"cut {number}: {bad}" for bad in checks.of_database(database, "I-7", "I-8", "I-9", "I-12") if not until_missing
                        ]
                    if found.missing and until_missing:
                        witness.abandon()
                        return found
                    await stage.start()
                await witness.more(1)
                found.back.append(time.monotonic() - began)
        found.told = len(witness.told)
        found.violations = await checks.violations(stage, kate, accepted=witness.accepted, clean_logs=False)
        with stage.database() as database:
            found.missing += witness.missing(database, 0)
    return found


@pytest.mark.scenario("power-cut-control")
async def test_the_harness_sees_the_loss_when_commits_are_not_synced(tmp_path: Path, dice: random.Random, record: Record) -> None:
    with mounted(tmp_path) as disk:
        stage = Powered(tmp_path, disk, database=True, broker=False, program=LAUNCHER)
        found = await cut_again_and_again(stage, dice, 30, until_missing=True)
    lost = [missing for missing in found.missing if "was told" in missing]
    note = f"synchronous=NORMAL planted: the loss must be seen: {len(found.missing)} in all"
    record(Row(scenario="power-cut-control", seed=SEED, faults=found.cuts, acknowledged=found.told, lost=len(lost), note=note))
    assert lost, "the harness is blind: it has not seen a loss that must have happened"


@pytest.mark.parametrize(
    "what, database, broker, cuts",
    [("database", True, False, (8, 30, 300)), ("broker", False, True, (2, 5, 100)), ("both", True, True, (2, 5, 100))],
    ids=["database", "broker", "both"],
)
@pytest.mark.scenario("power-cut")
async def test_what_anybody_was_told_is_still_so_after_the_power_failed(
    tmp_path: Path, dice: random.Random, tier: Tier, record: Record, what: str, *, database: bool, broker: bool, cuts: tuple[int, int, int]
) -> None:
    quick, usual, nightly = cuts
    count = tier(quick=quick, all=usual, nightly=nightly)
    with mounted(tmp_path, size=512 if broker else 128) as disk:
        stage = Powered(tmp_path, disk, database=database, broker=broker)
        found = await cut_again_and_again(stage, dice, count)
    record(
        Row(
            scenario=f"power-cut-{what}",
            seed=SEED,
            faults=count,
            acknowledged=found.told,
            lost=len(found.missing),
            duplicated=sum("times" in bad for bad in found.violations),
            back=found.back,
            note=f"exit codes of the workers left alone: {sorted(set(stage.codes))}",
        )
    )
    assert found.missing == []
    assert found.violations == []
    assert set(stage.codes) <= {BROKEN}
    assert found.told >= count
