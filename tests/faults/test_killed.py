"""The worker, the broker, or both are killed at random moments under load, and while events go out in batches.

Nothing is lost, nothing happens twice.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.stage import EVENTS, Agent, DidNotStart, Stage
from tests.eventually import eventually
from tests.faults.launcher import LAUNCHER
from tests.faults.load import Load
from tests.faults.report import Row, percentile
from tests.faults.verdict import verdict
from tests.tiers import SIZE, Tests, Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

Record = Callable[[Row], None]


async def moved_on(agent: Agent) -> None:
    """Return when the first message in line is another one than now, or there is none."""
    before = await agent.settled_up_to()

    async def is_settled() -> bool:
        return await agent.settled_up_to() > before or await agent.nothing_pending()

    await eventually(is_settled, within=60)


@pytest.mark.scenario("kill-worker")
async def test_nothing_is_lost_or_doubled_however_often_the_worker_is_killed_under_load(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    kills, most = tier(quick=20, all=100, nightly=1000), 1.2 if SIZE is Tests.NIGHTLY else 0.6
    waiting = tier(quick=2_000, all=10_000, nightly=10_000)
    load = Load([kate, await stage.agent("bob")], dice, patience=600)
    await load.open()
    await load.crowd(waiting)
    back: list[float] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(load.play(rate=15))
        for number in range(kills):
            if number % 3 == 0:  # a message that is in hand at five kills in a row is given up, as it must be
                await moved_on(kate)
            await asyncio.sleep(dice.uniform(0.05, most))
            began = time.monotonic()
            await stage.kill()
            await stage.start()
            back.append(time.monotonic() - began)
        load.stop()
    found = await verdict(stage, load, kate, at_least=2 * waiting + 10 * kills)
    record(found.row("kill-worker", back=back, faults=kills, note=f"{waiting} flows wait meanwhile"))
    assert found.bad == []
    assert percentile(back, 99) <= 15  # on a machine that does nothing else it is under two seconds


@pytest.mark.scenario("kill-in-batches")
async def test_nothing_is_lost_or_out_of_order_when_worker_or_broker_is_killed_in_the_middle_of_batches(
    tmp_path: Path, dice: random.Random, record: Record
) -> None:
    # Handed to the client; partly written; with nothing known about the acknowledgement; without a broker; both gone.
    every = ("publish_all.before:1:kill", "publish_all.after:1:kill", "write.after:8:kill", "", "broker", "both")
    blows = every * (12 if SIZE is Tests.NIGHTLY else 1)
    async with Stage(tmp_path, program=LAUNCHER) as stage:
        kate = await stage.agent("kate")
        load = Load([kate, await stage.agent("bob")], dice, patience=400.0)  # the worker is away most of the time
        await load.open()
        back: list[float] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(load.play(rate=15))
            for blow in blows:
                await stage.kill()
                await load.flood(250)
                began = time.monotonic()
                await struck(stage, blow, dice)
                back.append(time.monotonic() - began)
            load.stop()
        batches = [sent for sent in await stage.stream(EVENTS, kate) if "Nats-Batch-Commit" in sent.headers]
        found = await verdict(stage, load, kate, at_least=250 * len(blows), clean_logs=False)
    note = f"{len(batches)} batches stored"
    record(found.row("kill-in-batches", back=back, faults=len(blows), note=note))
    assert found.bad == []
    assert len(batches) >= len(blows), f"invalid run: {note}"


async def struck(stage: Stage, blow: str, dice: random.Random) -> None:
    """Start a worker that finds much to do, have the blow fall on it, and see it back; a failpoint has to be reached."""
    if blow.endswith("kill"):
        await killed_at(stage, blow)
        await stage.start()
        return
    await stage.start()
    await asyncio.sleep(dice.uniform(0.02, 0.3))
    if blow != "broker":
        await stage.kill()
    if blow:
        await stage.server.restart(kill=True)
    if blow != "broker":
        await stage.start()


async def killed_at(stage: Stage, spec: str) -> None:
    """Start a worker and see a failpoint kill it, be it before it is ready: it publishes the rest of the last one first."""
    try:
        await stage.start(FLOW_FAILPOINT=spec)
    except DidNotStart as ended:
        assert f"ended with {-signal.SIGKILL} " in str(ended)  # noqa: PT017  either way is an end by the failpoint
        return
    assert await asyncio.wait_for(stage.ended(), 60) == -signal.SIGKILL
