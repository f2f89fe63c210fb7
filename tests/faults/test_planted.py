"""The checks find every planted bug: what they do not find, they would not find either if we made it (RELIABILITY 2, last paragraph)."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e.stage import CONSUMERS, INBOUND, Agent, DidNotStart, Stage
from tests.faults.disturbing import side_by_side
from tests.faults.launcher import LAUNCHER
from tests.faults.load import Load
from tests.faults.planted import PLANTED
from tests.faults.report import Row
from tests.faults.verdict import verdict

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

AT_ONCE, ROUNDS = 5, 3
REST, PATIENCE, STILL = 90.0, 20.0, 8.0
"""Seconds until all has to be at rest without a bug. With one that loses something it never is: seconds that a player waits then, and
that the judge does after the last thing that happened."""


@pytest.mark.scenario("planted")
async def test_every_planted_bug_is_found_and_where_none_is_planted_none_is(
    tmp_path: Path, record: Callable[[Row], None], figure: Callable[[str], None]
) -> None:
    wanted = {bug.__name__: pattern for bug, pattern in PLANTED.items()}

    async def case(folder: Path, name: str) -> list[str]:
        return await gauntlet(folder, name, wanted.get(name, ""))

    found = await side_by_side(tmp_path, ("", *wanted), case, at_once=AT_ONCE)
    runs = len(found)
    assert found.pop("") == []
    told = {name: next((line for line in found[name] if re.search(pattern, line)), "") for name, pattern in wanted.items()}
    for name, line in told.items():
        figure(f"planted {name}: {line[:110] or f'NOT FOUND, only {found[name][:2]}'}")
    record(Row(scenario="planted", seed=SEED, runs=runs, faults=len(told), note=f"{sum(map(bool, told.values()))} of {len(told)} found"))
    assert [name for name, line in told.items() if not line] == []


async def gauntlet(folder: Path, name: str, pattern: str) -> list[str]:
    """Play rounds with a bug until something tells of it by `pattern`; without a bug one round. Returns what the last one told.

    A kill shows some bugs only where it falls between two lines, which no single one has to.
    """
    settings = {"FLOW_PLANTED": name} if name else {}
    told: list[str] = []
    async with Stage(folder, program=LAUNCHER, settings=settings) as stage:
        kate = await stage.agent("kate")
        for number in range(ROUNDS if name else 1):
            if not stage.running:
                await stage.start()
            try:
                told = await one_round(stage, kate, SEED + number, pattern)
            except* DidNotStart as ended:
                told = [f"it does not run: {one}" for one in ended.exceptions]
            if pattern and any(re.search(pattern, line) for line in told):
                break
    return told


async def one_round(stage: Stage, kate: Agent, seed: int, pattern: str) -> list[str]:
    """Load a worker, kill it, start a second one beside it, have everything delivered again; returns what tells of a bug.

    What was found before everything was delivered again is enough where the pattern is in it.
    """
    patience, still = (PATIENCE, STILL) if pattern else (REST, REST)
    load = Load([kate], random.Random(seed), patience=patience)
    await load.open()
    async with asyncio.TaskGroup() as playing:
        playing.create_task(load.play(rate=25, flows=80))
        second = await killed_and_doubled(stage)
    if not stage.running:
        await stage.start()
    told = [] if second == 75 else [overlap(second)]
    told += (await verdict(stage, load, kate, at_least=100, within=REST, still=still)).bad
    if pattern and any(re.search(pattern, line) for line in told):
        return told
    await stage.start()
    for consumer in CONSUMERS:
        await kate.js.delete_consumer(INBOUND, consumer)
    return told + (await verdict(stage, load, kate, at_least=100, within=REST, still=still)).bad


async def killed_and_doubled(stage: Stage) -> int | None:
    """Kill the worker three times, then start a second one beside it; returns how that ended."""
    for _ in range(3):
        await asyncio.sleep(0.4)
        await stage.kill()
        await stage.start()
    return await second_worker(stage)


def overlap(second: int | None) -> str:
    """Say that a second worker was not refused."""
    return f"I-25: a second worker on the same database ended with {second}, not 75"


async def second_worker(stage: Stage) -> int | None:
    """Start a worker beside the one that runs; returns how it ended, None where it did not."""
    process, log = await stage.spawn()
    try:
        return await asyncio.wait_for(process.wait(), 15)
    except TimeoutError:
        return None
    finally:  # also where another case has failed, and this one is cancelled
        if process.returncode is None:
            process.kill()
        await process.communicate()
        log.unlink()  # it says why it was refused in a sentence for people, which is no record
