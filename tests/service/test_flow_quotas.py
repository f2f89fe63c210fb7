"""Quotas of what agents' flows take, on a real database: counted right whatever happens, kept over restarts, and in nobody else's way."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nats_taskflow.config import Config
from nats_taskflow.config.settings import QuotaConfig
from tests.e2e import checks
from tests.eventually import eventually
from tests.service.line import Line, living
from tests.service.test_restored import copied, put_back

FEW = Config(quotas=QuotaConfig(open_flows=3))
MEGABYTE = 1024 * 1024
SMALL = Config(quotas=QuotaConfig(state_bytes=MEGABYTE))
BEGIN = {"controller_id": "c", "goal": "g"}
BIG: dict[str, Any] = {"state": {"text": "x" * 200_000}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


def code(outcome: dict[str, Any]) -> str:
    """What became of a command: `ok`, or the code of its refusal."""
    told: str = "ok" if outcome["ok"] else outcome["error"]["code"]
    return told


async def flood(line: Line, count: int) -> list[str]:
    """Have mallory start flows, all at once; returns what became of them."""
    names = [f"m-{uuid.uuid4()}" for _ in range(count)]
    for name in names:
        await line.agent.publish("taskflow.cmd.mallory.start", msgspec.json.encode(BEGIN), {"Nats-Msg-Id": name})
    await line.settled()
    stored = [await line.store.outcome("cmd:mallory", name) for name in names]
    return [code(msgspec.json.decode(row.result)) for row in stored if row is not None]


async def usage(line: Line, agent: str = "kate") -> list[tuple[int, int]]:
    """What is counted of an agent's flows."""
    found = await line.store._read("SELECT open_flows, state_bytes FROM usage WHERE agent = ?", (agent,))
    return [tuple(row) for row in found]


async def holds(line: Line) -> None:
    """Stop, and make sure that every invariant holds: I-16 compares what is counted with the flows."""
    await line.settled()
    await line.stop()
    with closing(sqlite3.connect(line.path)) as database:
        assert checks.of_database(database) == []


async def test_a_flood_of_starts_stops_at_the_agents_quota_and_a_neighbour_is_not_concerned(path: Path) -> None:
    async with living(path, FEW) as line:
        assert await flood(line, 50) == ["ok"] * 3 + ["quota_exceeded"] * 47
        assert code(await line.done("start", **BEGIN)) == "ok"
        counts = await line.store.counts()
        assert (counts["flows.running"], counts["inbox.rejected"], await line.dead()) == (4, 47, [])


async def test_the_quota_is_kept_over_a_restart_and_an_end_makes_room_for_one_flow(path: Path) -> None:
    line = Line(path, FEW)
    await line.start()
    flows = [await line.started() for _ in range(3)]
    await line.kill()
    await line.start()
    assert code(await line.done("start", **BEGIN)) == "quota_exceeded"
    assert code(await line.done("cancel", flow_id=flows[0])) == "ok"
    assert [code(await line.done("start", **BEGIN)) for _ in range(2)] == ["ok", "quota_exceeded"]
    await holds(line)


async def test_a_refused_request_leaves_nothing_behind_and_may_be_sent_again_under_its_id(path: Path) -> None:
    async with living(path, FEW) as line:
        flows = [await line.started() for _ in range(3)]
        wanted = {**BEGIN, "command_id": "again"}
        answer, headers = await line.ask("start", **wanted)
        assert (code(answer), headers["Nats-Service-Error-Code"]) == ("quota_exceeded", "429")
        assert answer["error"]["details"] == {"quota": "open_flows", "limit": 3, "used": 3, "retry_after": 60}
        assert await line.store.outcome("cmd:kate", "again") is None
        assert code(await line.done("finish", flow_id=flows[0])) == "ok"
        assert code((await line.ask("start", **wanted))[0]) == "ok"


async def test_states_count_until_the_flow_is_deleted_and_what_replies_bring_is_taken_all_the_same(path: Path) -> None:
    line = Line(path, SMALL)
    await line.start()
    flows = [await line.started(**BIG) for _ in range(5)]
    assert code(await line.done("start", **BEGIN, **BIG)) == "quota_exceeded"
    waiting = {"kind": "external_event", "topic": "agent.delegate.reply", "correlation_id": "c-1"}
    assert code(await line.done("wait", flow_id=flows[0], wait_condition=waiting)) == "ok"
    await line.reply({"text": "y" * 60_000}, "c-1")
    await line.settled()
    assert (await line.flow(flows[0])).status == "running"
    [(open_flows, used)] = await usage(line)
    assert open_flows == 5
    assert used > MEGABYTE
    for flow_id in flows:
        assert code(await line.done("advance", flow_id=flow_id, patch={"more": 1})) == "quota_exceeded"
        assert code(await line.done("finish", flow_id=flow_id, final_state={"more": 1})) == "ok"
    [(open_flows, used)] = await usage(line)
    assert open_flows == 0
    assert used > MEGABYTE
    assert code(await line.done("start", **BEGIN)) == "quota_exceeded", "they are stored still"
    await line.stop()
    line.advance(days=31)
    await line.start()

    async def forgotten() -> bool:
        """An agent without flows leaves nothing behind."""
        return await usage(line) == []

    await eventually(forgotten)
    assert code(await line.done("start", **BEGIN)) == "ok"
    await holds(line)


async def test_a_quota_that_is_lowered_below_what_is_there_keeps_nobody_from_going_on_and_ending(path: Path) -> None:
    line = Line(path)
    await line.start()
    flows = [await line.started(**BIG) for _ in range(6)]
    await line.stop()
    line.config = Config(quotas=QuotaConfig(open_flows=2, state_bytes=MEGABYTE))
    await line.start()
    assert code(await line.done("advance", flow_id=flows[0], patch={"text": ""})) == "ok"
    assert code(await line.done("wait", flow_id=flows[0], wait_condition={"kind": "manual"})) == "ok"
    assert code(await line.done("resume", flow_id=flows[0])) == "ok"
    assert code(await line.done("start", **BEGIN)) == "quota_exceeded"
    for flow_id in flows:
        assert code(await line.done("finish", flow_id=flow_id)) == "ok"
    await holds(line)


async def test_a_restored_copy_that_catches_up_counts_no_flow_twice(path: Path) -> None:
    line = Line(path, FEW)
    await line.start()
    await line.started()
    copy = await copied(line, path)
    before = await usage(line)
    flow_id = await line.started(flow_id=str(uuid.uuid4()))
    assert code(await line.done("finish", flow_id=flow_id)) == "ok"
    await line.started()
    after = await usage(line)
    await line.stop()
    put_back(copy, path)
    await line.start()
    await line.settled()
    assert before != after
    assert await usage(line) == after
    await holds(line)
