"""The broker is killed, stays away, sends everything again, has no patience or has much to say: nothing is lost, nothing happens twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from tests.conftest import SEED
from tests.e2e import checks
from tests.e2e.stage import EVENTS, INBOUND, Agent, Stage, encoded, in_order, new_id
from tests.eventually import eventually
from tests.faults.load import Load
from tests.faults.readiness import ready, resident
from tests.faults.report import Row
from tests.faults.test_operator import change_consumer, change_stream, passing
from tests.faults.verdict import verdict
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Record = Callable[[Row], None]


async def published(stage: Stage, agent: Agent, count: int) -> bool:
    """Tell whether the event stream holds this many messages."""
    return (await agent.js.stream_info(EVENTS)).state.messages >= count


@pytest.mark.scenario("kill-broker")
async def test_nothing_is_lost_when_the_broker_is_killed_again_and_again_and_the_pull_resumes(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    kills = tier(quick=5, all=20, nightly=200)
    load = Load([kate, await stage.agent("bob")], dice)
    await load.open()
    back: list[float] = []
    async with kate.listening("taskflow.evt.>") as heard, asyncio.TaskGroup() as group:
        group.create_task(load.play(rate=15))
        for _ in range(kills):
            await asyncio.sleep(dice.uniform(0.2, 1.0))
            await stage.server.restart(kill=True)
            began = time.monotonic()
            probe = new_id()
            await kate.insist(
                "taskflow.cmd.kate.start", encoded({"controller_id": "k", "goal": "probe", "flow_id": probe}), {"Nats-Msg-Id": f"p-{probe}"}
            )
            load.ledger.command("kate", f"p-{probe}", probe, "start").acknowledged = time.monotonic()
            await heard.until(lambda: any(f".{probe}." in m.subject for m in heard.messages), within=30)  # noqa: B023  awaited here
            back.append(time.monotonic() - began)
            heard.messages.clear()
        load.stop()
    found = await verdict(stage, load, kate, at_least=10 * kills, within=120)
    record(found.row("kill-broker", faults=kills, back=back, note="from the server's being up to a new message's event"))
    assert found.bad == []
    assert max(back) <= 5


@pytest.mark.scenario("kill-both")
async def test_nothing_is_lost_when_broker_and_worker_are_killed_at_random(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    kills = tier(quick=3, all=10, nightly=100)
    load = Load([kate, await stage.agent("bob")], dice)
    await load.open()
    back: list[float] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(load.play(rate=15))
        for _ in range(kills):
            await asyncio.sleep(dice.uniform(0.1, 0.8))
            first, second = dice.sample([stage.kill, stage.server.kill], 2)
            await first()
            await asyncio.sleep(dice.uniform(0.0, 0.2))
            await second()
            began = time.monotonic()
            await stage.server.start()
            await stage.start()
            back.append(time.monotonic() - began)
        load.stop()
    found = await verdict(stage, load, kate, at_least=10 * kills, within=120)
    record(found.row("kill-both", faults=2 * kills, back=back))
    assert found.bad == []


@pytest.mark.usefixtures("full_start")  # of which every page is its own
@pytest.mark.full
@pytest.mark.scenario("long-outage")
async def test_an_outage_longer_than_the_duplicate_window_leaves_order_and_no_gap(
    stage: Stage, kate: Agent, tier: Tier, record: Record
) -> None:
    backlog, batch = tier(all=2000, nightly=10_000), 1000
    await change_stream(kate, EVENTS, duplicate_window=2_000_000_000)
    await kate.start()
    await change_consumer(kate, max_ack_pending=10 * batch)
    # The outbox fills while the broker takes no events and the worker commits: commands come in, nothing goes out.
    await change_stream(kate, EVENTS, discard="new", max_msgs=2)
    starts = [partial(kate.cmd, "start", {"controller_id": "k", "goal": "g", "flow_id": new_id()}, f"s-{n}") for n in range(backlog // 2)]
    await in_order(starts)
    await eventually(kate.nothing_pending, within=60)
    before = resident(stage.pid)
    await stage.server.kill()
    await passing(3)  # longer than the duplicate window
    await stage.server.start()
    await eventually(lambda: kate.client.is_connected, within=10)
    began = time.monotonic()
    await change_stream(kate, EVENTS, discard="old", max_msgs=-1)
    await eventually(partial(published, stage, kate, 3), within=30)
    flowing = time.monotonic()
    await eventually(partial(published, stage, kate, backlog + 2), within=60)
    took, drained = time.monotonic() - began, time.monotonic() - flowing
    grown = resident(stage.pid) - before
    await ready(stage)
    assert await checks.violations(stage, kate, clean_logs=False) == []
    rate = backlog / drained
    note = f"outbox of {backlog}: drained at {rate:.0f} events/s, RSS {before:.0f} MiB {grown:+.0f} MiB"
    record(Row(scenario="long-outage", seed=SEED, faults=1, acknowledged=backlog // 2, back=[took], note=note))
    assert grown <= 20


@pytest.mark.scenario("replay")
async def test_a_stream_that_is_delivered_again_from_its_start_has_no_effect(stage: Stage, kate: Agent, tier: Tier, record: Record) -> None:
    count = tier(quick=1000, all=3000, nightly=100_000)
    starts = [partial(kate.cmd, "start", {"controller_id": "k", "goal": "g", "flow_id": new_id()}, f"s-{n}") for n in range(count)]
    await in_order(starts)
    await eventually(kate.nothing_pending, within=600)
    await kate.js.delete_consumer(INBOUND, "worker")
    began = time.monotonic()

    async def again() -> bool:
        with contextlib.suppress(Exception):  # the consumer is not there yet
            held = await kate.js.consumer_info(INBOUND, "worker")
            return held.ack_floor is not None and held.ack_floor.stream_seq == count
        return False

    await eventually(again, within=600)
    took = time.monotonic() - began
    assert await checks.violations(stage, kate, accepted=[("kate", f"s-{n}") for n in range(count)]) == []
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": count}
        extra = database.execute("SELECT count(*) FROM flow_events").fetchone()[0] - 2 * count
    record(
        Row(
            scenario="replay",
            seed=SEED,
            faults=count,
            acknowledged=count,
            duplicated=extra,
            back=[took],
            note="every message delivered again",
        )
    )
    assert extra == 0


@asynccontextmanager
async def slow_store(stage: Stage, seconds: float) -> AsyncIterator[None]:
    """Make the worker wait for its database: another program holds the write lock for most of the time."""
    over = asyncio.Event()

    async def hold() -> None:
        connection = sqlite3.connect(stage.path, isolation_level=None, timeout=10)
        try:
            while not over.is_set():
                connection.execute("BEGIN IMMEDIATE")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), seconds)
                connection.execute("COMMIT")
                await asyncio.sleep(0.05)
        finally:
            connection.close()

    holding = asyncio.create_task(hold())
    try:
        yield
    finally:
        over.set()
        await holding


@pytest.mark.full
@pytest.mark.scenario("short-ack-wait")
async def test_a_patience_shorter_than_the_work_ends_in_few_redeliveries_and_no_effect(stage: Stage, kate: Agent, record: Record) -> None:
    rounds, each = 14, 20
    count = rounds * each
    await change_consumer(kate, ack_wait=1_000_000_000)
    async with kate.listening("$JS.ACK.>") as settlements:
        async with slow_store(stage, 3.0):
            for number in range(rounds):
                body = {"controller_id": "k", "goal": "g"}
                await in_order([partial(kate.cmd, "start", body, f"s-{n}") for n in range(number * each, (number + 1) * each)])
                await passing(1)
        await eventually(kate.nothing_pending, within=60)
    heard = [(message.subject.split("."), message.data) for message in settlements.messages]
    alive = sum(data == b"+WPI" for _, data in heard)
    first = max(int(subject[4]) for subject, _ in heard)
    later = max(int(subject[4]) for subject, _ in heard if int(subject[5]) > count // 2)
    assert await checks.violations(stage, kate, accepted=[("kate", f"s-{n}") for n in range(count)], clean_logs=False) == []
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": count}
    note = f"ack_wait 1 s, commits 3 s: {first} attempts at most until the worker saw it, {later} afterwards, {alive} times in progress"
    record(Row(scenario="short-ack-wait", seed=SEED, faults=1, acknowledged=count, note=note))
    assert alive
    assert first <= 8
    assert later <= 2


@pytest.mark.usefixtures("full_start")  # of which every page is its own
@pytest.mark.full
@pytest.mark.scenario("slow-consumer")
async def test_a_hundred_megabytes_that_wait_do_not_end_up_in_memory(stage: Stage, kate: Agent, record: Record) -> None:
    count, size = 500, 200 * 1024
    await kate.start()
    baseline = resident(stage.pid)
    peaks: list[float] = [baseline]
    async with slow_store(stage, 2.0):
        body: dict[str, Any] = {"controller_id": "k", "goal": "g", "state": {"big": "x" * size}}
        data = json.dumps(body).encode()
        await in_order(
            [partial(kate.publish, "taskflow.cmd.kate.start", data, {"Nats-Msg-Id": f"s-{n}"}) for n in range(count)], at_once=20
        )

        began = time.monotonic()

        async def stalled() -> bool:
            peaks.append(resident(stage.pid))
            return time.monotonic() - began > 3  # of the looks themselves there are fewer, the longer it takes

        await eventually(stalled, within=30)

    async def done() -> bool:
        peaks.append(resident(stage.pid))
        return await kate.nothing_pending()

    await eventually(done, within=120)
    grown = max(peaks) - baseline
    note = f"{count * size / 1024**2:.0f} MiB waiting: RSS {baseline:.0f} MiB, at most {grown:+.0f} MiB"
    assert await checks.violations(stage, kate, accepted=[("kate", f"s-{n}") for n in range(count)], clean_logs=False) == []
    record(Row(scenario="slow-consumer", seed=SEED, faults=1, acknowledged=count, note=note))
    assert grown <= 80, note
