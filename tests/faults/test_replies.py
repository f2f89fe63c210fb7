"""Replies come early, late, several times, in pairs that contradict each other, while the worker is killed: each finds its wait, once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from tests.e2e.stage import Agent, Stage
from tests.faults.load import Load
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

PARTS = ("answered", "early", "twice", "late", "timeout", "stale", "conflict", "rounds", "race")


@pytest.mark.scenario("replies")
async def test_each_reply_finds_its_wait_once_however_they_come(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Callable[[Row], None]
) -> None:
    pairs, kills = tier(quick=500, all=2_000, nightly=10_000), tier(quick=2, all=3, nightly=15)
    load = Load([kate, await stage.agent("bob")], dice, parts=PARTS)
    await load.open()
    playing = asyncio.create_task(load.play(rate=100, flows=pairs))
    back: list[float] = []
    for _ in range(kills):
        await asyncio.sleep(pairs / 100 / (kills + 1))
        began = time.monotonic()
        await stage.kill()
        await stage.start()
        back.append(time.monotonic() - began)
    await playing
    found = await verdict(stage, load, kate, at_least=3 * pairs, within=120)
    record(found.row("replies", faults=kills, back=back, note=f"{pairs} flows, replies in any order"))
    assert found.bad == []
