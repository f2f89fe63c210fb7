"""The worker is killed at the k-th of each kind of system call that changes something, from its first to the last of its life."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.faults.house import House
from tests.faults.report import Row
from tests.faults.tracing import most_by_one_thread, require_strace, tracing
from tests.tiers import SIZE, Rotated, Tests, Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("strace")]

CALLS = ("fdatasync", "pwrite64", "write", "writev", "sendto", "unlink", "ftruncate")
"""What commits, what writes to the database, what sends to the broker (and wakes threads), what removes a log or a journal."""
Record = Callable[[Row], None]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    require_strace()
    async with House(tmp_path) as opened:
        yield opened


def chosen(count: int, most: int, dice: random.Random) -> list[int]:
    """Choose `most` of the numbers 1 to `count`, spread evenly from a random beginning; all of them where there are no more."""
    if count <= most:
        return list(range(1, count + 1))
    step = count / most
    return [int(dice.uniform(0, step) + n * step) + 1 for n in range(most)]


async def counted(house: House) -> dict[str, int]:
    """Play once undisturbed, and say how many calls of each kind one thread makes."""
    stage, log = house.stage(), house.folder / "counted.log"
    stage.under = [tracing(log, *CALLS)]
    assert await house.perform(stage) == []
    return {call: most_by_one_thread(log, call) for call in CALLS}


def killing(house: House, call: str, k: int) -> tuple[str, ...]:
    """Return the tracer that kills at the k-th call."""
    return tracing(house.folder / "killed.log", call, inject=f"signal=SIGKILL:when={k}")


@pytest.mark.scenario("kill-at-every-call")
async def test_wherever_the_worker_is_killed_the_scenario_ends_as_if_it_had_not_been(
    house: House, dice: random.Random, rotated: Rotated, record: Record
) -> None:
    counts = await counted(house)
    assert counts["fdatasync"] > 20, counts
    assert counts["pwrite64"] > 200, counts
    row = Row(scenario="kill-at-every-call", seed=SEED, runs=0, note=", ".join(f"{call} {n}" for call, n in counts.items() if n))
    wrong: dict[str, list[str]] = {}
    each = 250 if SIZE is Tests.NIGHTLY else 3
    for call, k in rotated([(call, k) for call, count in counts.items() for k in chosen(count, each, dice)], 4):
        stage = house.stage()
        stage.under = [killing(house, call, k)]
        if bad := await house.perform(stage):
            wrong[f"killed at {call} {k}"] = bad
        row.runs, row.faults, row.back = row.runs + 1, row.faults + len(stage.codes), [*row.back, *stage.recoveries]
        row.acknowledged += house.published
    row.lost = len(wrong)
    record(row)
    assert wrong == {}
    assert row.faults >= int(row.runs * 0.8), "too few of the kills came: the counts of this run were others"


@pytest.mark.full
@pytest.mark.scenario("kill-while-it-folds")
async def test_a_worker_that_is_killed_while_it_folds_the_log_into_the_file_starts_again(
    house: House, dice: random.Random, tier: Tier, record: Record
) -> None:
    stage, log = house.stage(), house.folder / "counted.log"
    stage.under = [tracing(log, "pwrite64", only=(stage.path,))]
    assert await house.perform(stage) == []
    count = most_by_one_thread(log, "pwrite64")
    assert count > 10
    row = Row(scenario="kill-while-it-folds", seed=SEED, runs=0, note=f"{count} pages are written to the file at the stop")
    wrong: dict[str, list[str]] = {}
    for k in chosen(count, tier(all=4, nightly=count), dice):
        stage = house.stage()
        stage.under = [tracing(house.folder / "killed.log", "pwrite64", only=(stage.path,), inject=f"signal=SIGKILL:when={k}")]
        if bad := await house.perform(stage):
            wrong[f"killed at page {k}"] = bad
        row.runs, row.faults, row.back = row.runs + 1, row.faults + len(stage.codes), [*row.back, *stage.recoveries]
        row.acknowledged += house.published
    row.lost = len(wrong)
    record(row)
    assert wrong == {}
    assert row.faults >= row.runs * 0.8


@pytest.mark.full
@pytest.mark.scenario("kill-while-it-recovers")
async def test_a_worker_that_is_killed_while_it_recovers_from_a_kill_recovers_the_next_time(
    house: House, dice: random.Random, tier: Tier, record: Record
) -> None:
    counts = await counted(house)
    row = Row(scenario="kill-while-it-recovers", seed=SEED, runs=0, note="the second kill comes within the start")
    wrong: dict[str, list[str]] = {}
    for call in ("fdatasync", "pwrite64", "write", "writev", "pread64"):
        for k in chosen(tier(all=3, nightly=40), tier(all=1, nightly=40), dice):
            stage = house.stage()
            first = "pwrite64"
            stage.under = [killing(house, first, dice.randrange(40, counts[first])), killing(house, call, k)]
            if bad := await house.perform(stage):
                wrong[f"killed again at {call} {k}"] = bad
            row.runs, row.faults, row.back = row.runs + 1, row.faults + len(stage.codes), [*row.back, *stage.recoveries]
            row.acknowledged += house.published
    row.lost = len(wrong)
    record(row)
    assert wrong == {}
    assert row.faults > row.runs, "no start was killed"
