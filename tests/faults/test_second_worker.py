"""A database has one worker: a second one ends at once, and one that was taken over writes nothing more (RELIABILITY 3, rows 13 and 26)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.e2e.stage import Agent, Stage
from tests.faults.disturbing import at_work, epochs_overlap, hasten, loaded
from tests.faults.report import Row
from tests.faults.verdict import verdict

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

Record = Callable[[Row], None]
Tier = Callable[[int, int], int]


@pytest.mark.scenario("second-worker")
async def test_a_second_worker_ends_with_75_while_the_first_works_and_while_it_is_stopped(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    tries = tier(5, 100)
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


async def takes_over(stage: Stage) -> asyncio.subprocess.Process:
    """Stop the worker where it is, take its lock away, and start another; returns the first, which still lies there."""
    first = stage._worker
    assert first is not None
    while True:
        first.send_signal(signal.SIGSTOP)
        stage.path.with_name("flows.db.lock").unlink(missing_ok=True)
        stage._worker, log = await stage.spawn()
        assert stage._worker.stdout is not None
        if line := await asyncio.wait_for(stage._worker.stdout.readline(), 20):
            stage.ready = json.loads(line)
            return first
        # The first was stopped in the middle of a transaction, and SQLite's own lock is still held.
        assert await stage._worker.wait() == 75, log.read_text(encoding="utf-8")
        stage._worker = first
        first.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.5)


@pytest.mark.scenario("zombie")
async def test_a_worker_that_wakes_up_after_it_was_taken_over_commits_nothing_and_ends_with_75(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    """The lock is removed by force: what is left is the epoch, which every transaction compares."""
    tries = tier(2, 20)
    async with loaded(stage, dice, kate, rate=4) as load:
        for _ in range(tries):
            await at_work(kate, load.ledger)
            first = await takes_over(stage)
            await hasten(kate, 2)  # what the stopped one has in hand comes back soon
            await asyncio.sleep(dice.uniform(0.2, 1))
            first.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(first.wait(), 30) == 75
    found = await verdict(stage, load, kate, at_least=20, within=120, clean_logs=False)  # why it ends is said as text
    with stage.database() as database:
        assert epochs_overlap(database) == []
        assert database.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0] > tries
    record(found.row("zombie", faults=tries, note="stopped, lock removed, taken over, woken: 75"))
    assert found.bad == []


@pytest.mark.scenario("pause")
async def test_pauses_longer_than_the_broker_waits_for_an_ack_do_nothing_twice(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    pauses = tier(8, 50)
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
