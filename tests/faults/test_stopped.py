"""Stops at random moments, and kills while the worker starts (RELIABILITY 3, rows 4 and 28)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nats_taskflow.store.sqlite.statements import migrations
from tests.conftest import SEED
from tests.e2e.stage import Agent, Stage
from tests.faults.disturbing import ended, loaded
from tests.faults.opening import MOST
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.tiers import Rotated, Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

Record = Callable[[Row], None]


@pytest.mark.scenario("stop")
async def test_stops_in_order_at_random_moments_end_with_0_and_leave_no_log_behind(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    stops = tier(quick=4, all=15, nightly=200)
    took, back = [], []
    async with loaded(stage, dice, kate, rate=10) as load:
        for _ in range(stops):
            await asyncio.sleep(dice.uniform(0.05, 0.5))
            began = time.monotonic()
            assert await stage.stop() == 0
            took.append(time.monotonic() - began)
            assert not stage.path.with_name("flows.db-wal").exists()
            began = time.monotonic()
            await stage.start()
            back.append(time.monotonic() - began)
    found = await verdict(stage, load, kate, at_least=2 * stops)
    record(found.row("stop", faults=stops, back=back, note=f"stopped within {max(took):.2f} s"))
    assert found.bad == []


@pytest.mark.full
@pytest.mark.scenario("stop-twice")
async def test_a_second_sigterm_ends_the_worker_at_once_and_nothing_is_lost(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    stops = tier(all=3, nightly=30)
    at_once = 0
    async with loaded(stage, dice, kate, rate=10) as load:
        for _ in range(stops):
            await asyncio.sleep(dice.uniform(0.05, 0.5))
            os.kill(stage.pid, signal.SIGTERM)
            await asyncio.sleep(dice.uniform(0, 0.05))
            if stage.running:
                os.kill(stage.pid, signal.SIGTERM)
            code = await ended(stage, within=10)
            # Both signals may arrive as one, or the first may have been enough already.
            assert code in {0, 128 + signal.SIGTERM, -signal.SIGTERM}
            at_once += code != 0
            await stage.start()
    found = await verdict(stage, load, kate, at_least=10)
    record(found.row("stop-twice", faults=stops, note=f"{at_once} ended at once"))
    assert found.bad == []


@pytest.mark.full
@pytest.mark.scenario("kill-start")
async def test_a_worker_killed_twice_while_it_starts_starts_again(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    """The first kill under load, the second at any moment of the start that recovers from it."""
    kills = tier(all=6, nightly=200)
    back: list[float] = []
    usual = 1.0
    async with loaded(stage, dice, kate, rate=8) as load:
        for number in range(kills):
            await stage.kill()
            process, _ = await stage.spawn()
            # Python needs most of the time until it is ready; what matters comes last.
            await asyncio.sleep(usual * (0.2 + 0.8 * number / kills) if number % 2 else usual * dice.uniform(0.5, 1.0))
            process.kill()
            await process.communicate()
            began = time.monotonic()
            await stage.start()
            back.append(usual := time.monotonic() - began)
            await asyncio.sleep(dice.uniform(0.05, 0.3))
    found = await verdict(stage, load, kate, at_least=kills)
    record(found.row("kill-start", faults=2 * kills, back=back, note="killed, and killed again while it started"))
    assert found.bad == []


@pytest.mark.scenario("kill-open")
async def test_an_opening_killed_at_every_statement_leaves_a_database_that_opens(tmp_path: Path, rotated: Rotated, record: Record) -> None:
    """Of a new file, which includes every migration, and of one in use."""
    first, second, *_ = rotated(range(1, MOST), 4)
    step = second - first
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.opening", str(tmp_path), str(first), str(step)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b""), err.decode()
    fresh, used = map(int, out.split())
    assert (fresh + 1) * step > sum(map(len, migrations()))
    assert (used + 1) * step > 20
    record(Row(scenario="kill-open", seed=SEED, runs=2, faults=fresh + used, note=f"statements of opening: {fresh} new, {used} in use"))
