"""The wall clock of the worker's machine jumps: timers keep to it, nothing fires early or twice, nothing needed is deleted (row 33)."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e import checks
from tests.e2e.stage import CONSUMERS, INBOUND, TOPIC, Agent, Json, Stage
from tests.eventually import eventually
from tests.faults.disturbing import loaded
from tests.faults.launcher import LAUNCHER
from tests.faults.load import PARTS
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

HOUR = 3600.0
DECADE = 3652 * 86400.0
Record = Callable[[Row], None]


class Clock:
    """The worker's wall clock: as far from the real one as the file says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.jump(0)

    def jump(self, offset: float) -> None:
        """Be so many seconds ahead of the real clock from now on; in one step, so that no half of a number is read."""
        self.offset = offset
        fresh = self.file.with_suffix(".new")
        fresh.write_text(str(offset), encoding="ascii")
        fresh.rename(self.file)

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + self.offset, UTC)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
async def shifted(tmp_path: Path, clock: Clock) -> AsyncIterator[Stage]:
    """A worker whose clock the test moves, and that looks for due timers every second."""
    settings = {"FLOW_CLOCK": str(clock.file), "TASKFLOW_ENGINE_TICK_INTERVAL": "1s"}
    async with Stage(tmp_path, program=LAUNCHER, settings=settings) as made:
        yield made


@pytest.fixture
async def agent(shifted: Stage) -> Agent:
    return await shifted.agent("kate")


async def timed(agent: Agent, clock: Clock, ahead: float) -> tuple[str, datetime]:
    """Park a flow on a moment of the worker's clock."""
    flow_id, at = await agent.start(), clock.now + timedelta(seconds=ahead)
    answer = await agent.api("wait", {"flow_id": flow_id, "wait_condition": {"kind": "timer", "at": at.isoformat()}})
    assert answer["ok"], answer
    return flow_id, at


@pytest.mark.scenario("clock-timers")
async def test_a_jump_forward_fires_what_is_due_and_a_jump_back_fires_nothing_again(shifted: Stage, agent: Agent, clock: Clock) -> None:
    soon, soon_at = await timed(agent, clock, 1800)
    later, later_at = await timed(agent, clock, 2 * HOUR)
    replied = await agent.parked("c-1", timeout="1h 30m")
    clock.jump(HOUR)
    fired = await agent.until(soon, "running")
    assert datetime.fromisoformat(fired["updated_at"]) >= soon_at
    assert (await agent.flow(later))["status"] == "waiting"
    clock.jump(-HOUR)
    await agent.reply(TOPIC, "c-1", 1)
    answered = await agent.until(replied, "running")
    assert answered["state"]["resume_event"] == 1  # the deadline has not come, whatever the clock said in between
    clock.jump(0)
    assert (await agent.flow(soon))["status"] == "running"
    assert await agent.kinds(soon) == ["created", "started", "waiting", "resumed"]
    clock.jump(2 * HOUR)
    late = await agent.until(later, "running")
    assert datetime.fromisoformat(late["updated_at"]) >= later_at
    assert await checks.violations(shifted, agent) == []


def jumps(dice: random.Random, count: int) -> list[float]:
    """Offsets from the real clock: an hour or ten years, ahead or behind, and back."""
    kinds = [HOUR, -HOUR, 0.0, DECADE, 0.0, -DECADE, 0.0]
    return [kinds[n % len(kinds)] + dice.uniform(-1, 1) for n in range(count - 1)] + [0.0]


@pytest.mark.scenario("clock-jumps")
async def test_live_jumps_of_hours_and_decades_lose_nothing_and_do_nothing_twice(
    shifted: Stage, agent: Agent, clock: Clock, dice: random.Random, tier: Tier, record: Record
) -> None:
    """Without the parts whose end is a matter of time: what they come to depends on the jumps, and is checked above.

    A deadline that is set ten years ahead, and has not come when the clock jumps back, does not come in this run.
    """
    count = tier(quick=7, all=15, nightly=100)
    parts = [part for part in PARTS if part not in {"timer", "timeout", "stale", "early", "rounds"}]
    async with loaded(shifted, dice, agent, parts=parts) as load:
        for offset in jumps(dice, count):
            clock.jump(offset)
            await asyncio.sleep(dice.uniform(0.2, 0.6))
    found = await verdict(shifted, load, agent, at_least=50)
    with shifted.database() as database:
        # What a flow is changed at never lies before what it was changed at.
        back = (
            "SELECT flow, seq FROM (SELECT flow, seq, at_us, lag(at_us) OVER (PARTITION BY flow ORDER BY seq) AS before FROM flow_events)"
        )
        assert database.execute(f"{back} WHERE at_us < before").fetchall() == []
    record(found.row("clock-jumps", faults=count, note="±1 h, ±10 y"))
    assert found.bad == []


async def is_published(stage: Stage, agent: Agent, flow_id: str) -> bool:
    return len(await stage.events(agent, flow_id)) == 3


@pytest.mark.scenario("clock-prune")
async def test_ten_years_ahead_the_worker_still_recognises_what_the_stream_keeps(shifted: Stage, agent: Agent, clock: Clock) -> None:
    """Messages are remembered by the stream's sequence, not by age: what the stream may deliver again must be known."""
    body: Json = {"controller_id": "k", "goal": "g"}
    await agent.cmd("start", body, "s-1")
    first = await agent.outcome_bytes("s-1")
    waiting = await agent.parked("c-1")
    over = await agent.start()
    assert (await agent.api("finish", {"flow_id": over}))["ok"]
    await eventually(lambda: is_published(shifted, agent, over))
    await shifted.stop()
    clock.jump(DECADE)
    await shifted.start()  # prunes as it starts

    pruned = shifted.logs()[-1]
    await eventually(lambda: '"pruned"' in pruned.read_text(encoding="utf-8"), within=20)
    assert (await agent.api("status", {"flow_id": over}))["error"]["code"] == "not_found"
    assert await agent.outcome_bytes("s-1") == first
    assert (await agent.flow(waiting))["status"] == "waiting"
    assert json.loads(first)["ok"]
    for consumer in CONSUMERS:
        await agent.client.request(f"$JS.API.CONSUMER.RESET.TASKFLOW_IN.{consumer}", b'{"seq":1}')
    clock.jump(0)
    await agent.reply(TOPIC, "c-1", 1)
    await agent.until(waiting, "running")
    assert await agent.kinds(waiting) == ["created", "started", "waiting", "resumed"]
    assert await shifted.stop() == 0
    last = (await agent.js.stream_info(INBOUND)).state.last_seq
    with shifted.database() as database:
        assert database.execute("SELECT count(*) FROM inbox WHERE source_seq IS NOT NULL").fetchone()[0] == last
        assert checks.of_database(database, "I-12") == []
