"""A database of every schema there ever was comes up, and what waited in it goes on (RELIABILITY 3, row 40)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from nats_taskflow.bus.memory.broker import CoreMessage
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.store.sqlite.statements import migrations
from tests.e2e import checks
from tests.eventually import eventually
from tests.fixtures.living import DELEGATE, FOLDER, loaded
from tests.running import running as running_on
from tests.service.line import TOPIC, Line

SCHEMAS = sorted(int(file.stem.partition("-")[2]) for file in FOLDER.glob("schema-*.sql"))


def test_there_is_a_database_of_every_schema() -> None:
    assert list(range(1, len(migrations()) + 1)) == SCHEMAS, "make it: python -m tests.fixtures.living"


async def answer(asked: CoreMessage) -> bytes | None:
    return b'{"answer": 42}'


@pytest.fixture(params=SCHEMAS, ids=lambda schema: f"schema {schema}")
async def line(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Line]:
    """A worker of today on it, and a broker that has lost everything it had."""
    path = tmp_path / "flows.db"
    loaded(request.param, path)
    made = Line(path)
    made.advance(minutes=1)  # what could not be sent then is due again
    await made.agent.respond_on(DELEGATE, answer)
    await made.start()
    yield made
    if not made.failed:
        await made.stop()


async def by_goal(line: Line) -> dict[str, str]:
    return {flow.goal: flow.id for _, flow in (await line.store.list_flows(limit=100)).rows}


async def running(line: Line, flow_id: str) -> bool:
    return (await line.flow(flow_id)).status is FlowStatus.RUNNING


async def test_what_waited_in_an_older_database_goes_on(line: Line) -> None:
    flows = await by_goal(line)
    await line.reply({"n": 1}, "reply")
    await line.reply({"leaf": 2}, "second")
    for goal in ("reply", "half", "delegated"):
        await eventually(lambda goal=goal: running(line, flows[goal]), within=10)  # type: ignore[misc]  # mypy: the default of a lambda
    assert (await line.flow(flows["half"])).state_json["resume_event"] == {"0": {"leaf": 1}, "1": {"leaf": 2}}
    assert (await line.flow(flows["delegated"])).state_json["resume_event"] == {"answer": 42}
    assert (await line.done("resume", "new-1", flow_id=flows["approval"]))["ok"]
    assert await running(line, flows["approval"])
    wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": "early"}
    assert (await line.done("wait", "new-2", flow_id=flows["held"], wait_condition=wait))["ok"]
    assert (await line.flow(flows["held"])).state_json["resume_event"] == {"early": True}
    line.advance(hours=1)
    await eventually(lambda: running(line, flows["timer"]), within=10)
    assert (await line.flow(flows["deadline"])).status is FlowStatus.WAITING
    line.advance(hours=1)

    async def failed() -> bool:
        return (await line.flow(flows["deadline"])).status is FlowStatus.FAILED

    await eventually(failed, within=10)
    assert (await line.flow(flows["finished"])).state_json == {"made": "finished", "done": True}


async def test_what_was_done_in_an_older_database_is_not_done_again(line: Line) -> None:
    flows = await by_goal(line)
    again = {"flow_id": flows["finished"], "final_state": {"done": True}}
    assert (await line.done("finish", "finish-1", **again))["flow"]["status"] == "finished"
    await line.settled()
    counts = await line.store.counts()
    assert counts["inbox.duplicate"] == 1
    await line.reply({"leaf": 1}, "first", event_id="leaf-1")
    await line.settled()
    assert (await line.store.counts())["inbox.duplicate"] == 2


async def test_an_older_database_keeps_every_invariant(line: Line) -> None:
    await line.settled()
    await line.stop()
    path = Path(line.path)
    with closing(sqlite3.connect(path)) as database, database:
        assert checks.of_database(database) == []
    database.close()


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_what_waits_in_an_older_database_is_counted_by_kind(schema: int, tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    loaded(schema, path)
    async with running_on(str(path)) as run:
        counts = await run.store.counts()
    waits = {name: number for name, number in counts.items() if name.startswith("waits.")}
    assert waits.keys() >= {"waits.external_event", "waits.timer", "waits.manual"}
    assert sum(waits.values()) == counts["flows.waiting"]


@pytest.mark.slow
async def test_an_older_program_refuses_a_newer_database_with_78_and_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    loaded(SCHEMAS[-1], path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"PRAGMA user_version = {len(migrations()) + 1}")
    database.close()
    content = path.read_bytes()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_taskflow", "run", "--store-path", str(path)),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    _, err = await process.communicate()
    assert process.returncode == 78
    assert f"has schema {len(migrations()) + 1}" in err.decode().splitlines()[-1]
    assert path.read_bytes() == content
