"""Commands beyond an agent's quota are refused at the price of a look, and cost nobody else anything (CONTRACT 3)."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import pytest

from nats_taskflow.config import Config
from nats_taskflow.config.settings import QuotaConfig
from tests.service.line import Line, living

QUOTED = Config(quotas=QuotaConfig(commands_per_second=2))
BEGIN = {"controller_id": "c", "goal": "g"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


async def flood(line: Line, count: int, first: int = 0) -> list[str]:
    """Have mallory start flows; returns the ids of the commands."""
    names = [f"m-{n}" for n in range(first, first + count)]
    for name in names:
        await line.agent.publish("taskflow.cmd.mallory.start", msgspec.json.encode(BEGIN), {"Nats-Msg-Id": name})
    return names


async def outcomes(line: Line, names: list[str]) -> list[str]:
    """What became of mallory's commands: `ok`, or the code."""
    await line.settled()
    rows = [await line.store.outcome("cmd:mallory", name) for name in names]
    decoded = [msgspec.json.decode(row.result) for row in rows if row is not None]
    assert len(decoded) == len(names), "every message has its outcome (SEMANTICS R14)"
    return [one.get("error", {}).get("code", "ok") for one in decoded]


async def test_a_flood_is_refused_beyond_the_quota_and_a_neighbour_is_not(path: Path) -> None:
    async with living(path, QUOTED) as line:
        names = await flood(line, 100)
        assert (await line.done("start", **BEGIN))["ok"]
        assert await outcomes(line, names) == ["ok"] * 20 + ["quota_exceeded"] * 80
        counts = await line.store.counts()
        assert (counts["flows.running"], counts["inbox.rejected"]) == (21, 80)
        assert await line.dead() == []
        refused = await line.store.outcome("cmd:mallory", names[-1])
        assert refused is not None
        assert msgspec.json.decode(refused.result)["error"]["details"] == {"quota": "commands", "limit": 2, "retry_after": 1}
        line.advance(seconds=3)
        assert await outcomes(line, await flood(line, 10, first=100)) == ["ok"] * 6 + ["quota_exceeded"] * 4


async def test_what_was_sent_within_the_quota_while_no_worker_ran_is_decided(path: Path) -> None:
    """It counts by when the broker stored it, however fast it is read."""
    line = Line(path, QUOTED)
    await line.start()
    await line.stop()
    names = []
    for second in range(60):
        line.clock.advance(seconds=1)
        names += await flood(line, 2, first=2 * second)
    await line.start()
    assert await outcomes(line, names) == ["ok"] * 120
    await line.stop()


async def test_a_refused_command_is_told_the_same_again_and_is_no_conflict(path: Path) -> None:
    """CONTRACT 2: a repeat returns the stored outcome."""
    async with living(path, QUOTED) as line:
        names = await flood(line, 30)
        assert (await outcomes(line, names))[-1] == "quota_exceeded"
        line.advance(minutes=11)  # beyond the broker's duplicate window
        assert await outcomes(line, await flood(line, 1, first=29)) == ["quota_exceeded"]
        assert (await line.store.counts())["inbox.duplicate"] == 1
        assert await line.dead() == []


async def test_a_refused_request_leaves_nothing_behind_and_may_be_sent_again(path: Path) -> None:
    async with living(path, QUOTED) as line:
        wanted = {**BEGIN, "flow_id": str(uuid.uuid4()), "command_id": "again"}
        for number in range(20):
            assert (await line.ask("start", **BEGIN, command_id=f"k-{number}"))[0]["ok"]
        answer, headers = await line.ask("start", **wanted)
        assert (answer["error"]["code"], headers["Nats-Service-Error-Code"]) == ("quota_exceeded", "429")
        assert await line.store.outcome("cmd:kate", "again") is None
        assert (await line.ask("outcome", command_id="k-0"))[0]["ok"], "queries are not commands"
        assert (await line.done("start", **BEGIN))["ok"], "the doors are counted apart"
        line.advance(seconds=answer["error"]["details"]["retry_after"])
        assert (await line.ask("start", **wanted))[0]["ok"]
