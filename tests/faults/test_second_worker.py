"""A database has one worker: a second one ends at once; one that is paused does nothing twice (RELIABILITY 3, rows 13 and 26)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.e2e.stage import Agent, Stage
from tests.faults.disturbing import at_work, epochs_overlap, hasten, loaded
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

Record = Callable[[Row], None]


@pytest.mark.scenario("second-worker")
async def test_a_second_worker_ends_with_75_while_the_first_works_and_while_it_is_stopped(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    tries = tier(quick=2, all=5, nightly=100)
    took: list[float] = []
    async with loaded(stage, dice, kate, rate=5) as load:
        for number in range(tries):
            paused = number % 2 == 1
            if paused:
                os.kill(stage.pid, signal.SIGSTOP)
            try:
                second = await stage.refused()
            finally:
                if paused:
                    os.kill(stage.pid, signal.SIGCONT)
            assert second.code == 75, second.stderr
            assert len(second.stderr.splitlines()) <= 2, second.stderr  # that it starts, and why it does not
            took.append(second.seconds)
        await at_work(kate, load.ledger)
    found = await verdict(stage, load, kate, at_least=20, clean_logs=False)  # why it does not run is said as text
    with stage.database() as database:
        assert epochs_overlap(database) == []
        assert database.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0] == 1
    record(found.row("second-worker", faults=tries, note=f"ended after at most {max(took):.2f} s with 75"))
    assert found.bad == []


@pytest.mark.full
@pytest.mark.scenario("pause")
async def test_pauses_longer_than_the_broker_waits_for_an_ack_do_nothing_twice(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    pauses = tier(all=8, nightly=50)
    await hasten(kate, 1)
    back: list[float] = []
    async with loaded(stage, dice, kate, rate=10) as load:
        for _ in range(pauses):
            await asyncio.sleep(dice.uniform(0.05, 0.5))
            os.kill(stage.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(dice.uniform(0.5, 3))
            finally:
                os.kill(stage.pid, signal.SIGCONT)
            back.append(await at_work(kate, load.ledger))
    found = await verdict(stage, load, kate, at_least=10 * pauses)
    record(found.row("pause", faults=pauses, back=back, note="SIGSTOP 0.5 to 3 s, ack_wait 1 s"))
    assert found.bad == []
