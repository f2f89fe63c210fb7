"""The worker, the broker, or both are killed at random moments under load: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from tests.e2e.stage import Agent, Stage
from tests.faults.load import Load
from tests.faults.report import Row, percentile
from tests.faults.verdict import verdict

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

WAITING = 10_000
Record = Callable[[Row], None]
Tier = Callable[[int, int], int]


@pytest.mark.scenario("kill-worker")
async def test_nothing_is_lost_or_doubled_however_often_the_worker_is_killed_under_load(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    kills = tier(100, 1000)
    load = Load([kate, await stage.agent("bob")], dice, patience=600)
    await load.open()
    await load.crowd(WAITING)
    back: list[float] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(load.play(rate=tier(15, 15)))
        for _ in range(kills):
            await asyncio.sleep(dice.uniform(0.05, 1.2))
            began = time.monotonic()
            await stage.kill()
            await stage.start()
            back.append(time.monotonic() - began)
        load.stop()
    found = await verdict(stage, load, kate, at_least=10 * kills)
    record(found.row("kill-worker", back=back, faults=kills, note=f"{WAITING} flows wait meanwhile"))
    assert found.bad == []
    assert percentile(back, 99) <= 2
