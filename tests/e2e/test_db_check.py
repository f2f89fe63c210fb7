"""`taskflow db check` beside a worker that runs: a process of its own, a snapshot of its own, and nothing that does not hold."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from contextlib import closing

import pytest

from tests.e2e import checks
from tests.e2e.stage import TOPIC, Agent, Json, Stage, event, new_id
from tests.eventually import eventually
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

LOADS = 2


async def checked(stage: Stage, *arguments: str, code: int = 0) -> str:
    """Run the command with the worker's settings; return its stdout, once it has ended as it should."""
    command = (sys.executable, "-m", "nats_taskflow", "db", "check", *arguments)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=stage.environment(), cwd=stage.folder)
    out, err = await process.communicate()
    assert process.returncode == code, (out + err).decode()
    return out.decode()


async def one_life(kate: Agent, number: int) -> None:
    """Let a flow start, wait, be answered (early, for every third), go on and finish."""
    flow_id, corr = new_id(), f"corr-{number}"
    if number % 3 == 0:
        await kate.reply(TOPIC, corr, number, f"reply-{number}")
    await kate.cmd("start", {"controller_id": "kate/load", "goal": "go on", "flow_id": flow_id}, f"start-{number}")
    await kate.cmd("wait", {"flow_id": flow_id, "wait_condition": event(corr, timeout="1h")}, f"wait-{number}")
    if number % 3:
        await kate.reply(TOPIC, corr, number, f"reply-{number}")
    assert (await kate.outcome(f"wait-{number}", within=60))["ok"]
    await kate.until(flow_id, "running", within=60)
    await kate.cmd("finish", {"flow_id": flow_id, "final_state": {"n": number}}, f"finish-{number}")
    assert (await kate.outcome(f"finish-{number}", within=60))["ok"]


async def test_nothing_is_found_twenty_times_in_a_row_while_a_worker_is_busy(stage: Stage, kate: Agent, tier: Tier) -> None:
    lives = 0
    enough = asyncio.Event()

    async def load(first: int) -> None:
        nonlocal lives
        number = first
        while not enough.is_set():
            await one_life(kate, number)
            number += LOADS
            lives += 1

    async with asyncio.TaskGroup() as group:
        for first in range(LOADS):
            group.create_task(load(first))
        await eventually(lambda: lives > 20, within=60)
        seen = []
        for run in range(tier(quick=4, all=20, nightly=20)):
            said: Json = json.loads(await checked(stage, "-o", "json", *(("--events",) if run % 2 else ())))
            assert said["ok"], said["violations"]
            assert said["worker"] == stage.pid
            seen.append(said["flows"])
        enough.set()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0], "the load went on meanwhile"
    assert await checks.violations(stage, kate, accepted=[("kate", f"finish-{n}") for n in range(LOADS)]) == []


async def test_a_person_is_told_of_the_worker_and_that_everything_holds(stage: Stage, kate: Agent) -> None:
    await kate.parked("c-1")
    out = await checked(stage, "--quick")
    assert f"pid {stage.pid}" in out
    assert "Everything holds: 1 flow in " in out
    assert "\x1b" not in out
    await stage.stop()
    assert "is running" not in await checked(stage)


async def test_a_violation_is_told_of_with_its_number_and_what_to_do(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    await stage.stop()
    with closing(sqlite3.connect(stage.path)) as database, database:
        database.execute("UPDATE waiters SET open = 0")
    database.close()
    out = await checked(stage, code=1)
    assert "I-14" in out
    assert f"{flow_id} waits for ({TOPIC}, c-1)" in out
    assert "What to do: " in out


async def test_events_that_are_not_those_of_the_journal_are_found_over_nats(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()

    async def published() -> bool:
        return len(await stage.events(kate, flow_id)) == 2

    await eventually(published)
    await stage.stop()
    (first, *_) = await stage.events(kate, flow_id)
    other = first.body.replace(flow_id.encode(), new_id().encode())
    await kate.publish(first.subject, other, {"Nats-Msg-Id": "forged"})
    said = json.loads(await checked(stage, "--events", "-o", "json", code=1))
    assert {one["number"] for one in said["violations"]} == {"I-21", "I-22"}
    assert (await checked(stage, "-o", "json")) != "", "without --events the database alone is as it should be"
