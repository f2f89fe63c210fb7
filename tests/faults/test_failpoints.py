"""At every named point the worker is killed, fails, or hangs: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.stage import DidNotStart, Stage
from tests.faults.disturbing import side_by_side
from tests.faults.failpoints import ACTIONS, IN_BATCHES, POINTS, REACHED
from tests.faults.launcher import LAUNCHER
from tests.faults.load import PARTS, Load
from tests.faults.report import Row
from tests.faults.verdict import Verdict, at_rest, verdict
from tests.standing import stand_still
from tests.tiers import SIZE, Rotated, Tests

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

AT_ONCE = {"kill": 6, "raise": 6, "hang": 9}
QUICK = tuple(name for name in PARTS if name != "timer")
AT_THE_START = {"store_open", "migrate", "take_over", "connect", "prepare", "recover", "rewind"}
AFTER_A_KILL = {"rewind"}
ONCE = {*AT_THE_START, "finish", "flush", "bus_close", "store_close", "mark_published", "send", "settle_outgoing", "answer", "due"}
QUIET = tuple(point for point in POINTS if point.partition(".")[0] not in IN_BATCHES)
CHOSEN = QUIET if SIZE is Tests.NIGHTLY else tuple(point for at, point in enumerate(QUIET) if at % 2 == (at // 2) % 2)
"""Both sides of every step by night, one of them by day, in turn."""


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.scenario("failpoints")
async def test_a_worker_that_dies_fails_or_hangs_at_any_point_loses_and_doubles_nothing(
    tmp_path: Path, action: str, dice: random.Random, rotated: Rotated, record: Callable[[Row], None]
) -> None:
    seeds = {point: dice.random() for point in CHOSEN}

    async def case(folder: Path, point: str) -> Verdict:
        return await reached_and_survived(folder, point, action, random.Random(seeds[point]))

    found = await side_by_side(tmp_path, rotated(CHOSEN, 4), case, at_once=AT_ONCE[action])
    record(
        Row(
            scenario=f"failpoints-{action}",
            seed=0,
            runs=len(found),
            faults=len(found),
            acknowledged=sum(one.acknowledged for one in found.values()),
            in_doubt=sum(one.in_doubt for one in found.values()),
            recovered=sum(one.recovered for one in found.values()),
            lost=sum(len(one.lost) for one in found.values()),
            duplicated=sum(len(one.duplicated) for one in found.values()),
        )
    )
    assert {point: one.bad for point, one in found.items() if one.bad} == {}


async def reached_and_survived(folder: Path, point: str, action: str, dice: random.Random) -> Verdict:
    """Play against a worker with a failpoint in it, starting another one whenever it dies."""
    step = point.partition(".")[0]
    nth = 1 if step in ONCE else dice.randint(1, 6)
    stage = Stage(folder, program=LAUNCHER)
    await stage.server.start()
    try:
        kate = await stage.agent("kate")
        load = Load([kate], dice, parts=QUICK)
        await load.open()
        if step in AFTER_A_KILL:
            await stage.start()
            await stand_still(stage.pid)  # so that nothing of what it is given is settled
            await load.flood(300)
            await stage.kill()
        await start_through(stage, f"{point}:{nth}:{action}")
        keeping = asyncio.create_task(kept_running(stage))
        await load.play(rate=40, flows=2 * len(QUICK))
        await at_rest(stage, load, kate, within=180)
        keeping.cancel()
        await asyncio.wait({keeping})
        await stage.stop(within=30)
        assert (folder / REACHED).exists(), f"invalid run: {point} was not reached {nth} times"
        await stage.start()
        return await verdict(stage, load, kate, at_least=80, within=180, clean_logs=False)
    finally:
        await stage.close()


async def start_through(stage: Stage, spec: str) -> None:
    """Start a worker with a failpoint, and another one if it does not get through its start."""
    try:
        await stage.start(FLOW_FAILPOINT=spec)
    except DidNotStart:
        await stage.start()


async def kept_running(stage: Stage) -> None:
    """Start the worker again whenever it ends, as systemd would."""
    while True:
        await stage.ended()
        await stage.start()
