"""Two clocks: the broker's, by which replies arrive, and the worker's, by which deadlines pass (SEMANTICS R9, RELIABILITY 9)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nats_taskflow.bus.nats.clock import ClockOffset
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.units import SECOND
from tests.eventually import eventually
from tests.running import VirtualClock
from tests.service.line import Line


async def apart(path: Path, seconds: int) -> Line:
    """A worker whose clock is so many seconds behind the broker's, and that has measured it."""
    line = Line(path)
    line.broker.clock = VirtualClock(line.clock.now + timedelta(seconds=seconds))
    await line.start()
    line.bus.offset = seconds * SECOND
    return line


@pytest.mark.parametrize("behind", [3, -3])
async def test_a_reply_at_once_wins_over_a_timeout_whatever_the_clocks_say(tmp_path: Path, behind: int) -> None:
    """With the worker's clock 3 s behind the broker's it lost to a timeout of 2 s, and nobody was told."""
    line = await apart(tmp_path / "flows.db", behind)
    flow_id = await line.parked(timeout="2s")
    await line.reply({"n": 1})
    flow = await eventually(lambda: _resumed(line, flow_id))
    assert flow is not None
    assert flow.state_json["resume_event"] == {"n": 1}
    await line.stop()


@pytest.mark.parametrize("behind", [3, -3])
async def test_a_reply_after_the_deadline_loses_whatever_the_clocks_say(tmp_path: Path, behind: int) -> None:
    line = await apart(tmp_path / "flows.db", behind)
    flow_id = await line.parked(timeout="2s")
    line.clock.advance(seconds=2)
    line.broker.clock.advance(seconds=2)  # type: ignore[attr-defined]  # a virtual one, see above
    await line.reply({"n": 1})
    flow = await eventually(lambda: _resumed(line, flow_id))
    assert flow is not None
    assert flow.state_json["resume_event"] == {"timed_out": True}
    await line.stop()


async def _resumed(line: Line, flow_id: str) -> Flow | None:
    flow = await line.flow(flow_id)
    return flow if flow.status is FlowStatus.RUNNING else None


async def test_more_than_a_second_apart_is_not_ready_and_said_once(tmp_path: Path) -> None:
    line = await apart(tmp_path / "flows.db", 0)
    probes = line.services.probes
    assert all(check.ok for check in probes.ready() if check.name == "clock")
    with capture_logs() as logs:
        for offset, words in ((3 * SECOND, "3.0 s behind"), (-2 * SECOND, "2.0 s ahead")):
            line.bus.offset = offset
            (check,) = [check for check in probes.ready() if check.name == "clock"]
            assert not check.ok
            assert words in check.reason
            probes._watch_clock()
            probes._watch_clock()
        line.bus.offset = SECOND
        assert all(check.ok for check in probes.ready() if check.name == "clock")
        probes._watch_clock()
        line.bus.offset = 2 * SECOND
        probes._watch_clock()
    assert [log["event"] for log in logs if log["event"] == "clock_apart"] == ["clock_apart"] * 2
    await line.stop()


def test_the_offset_moves_by_what_is_more_than_a_measurement_may_be_wrong() -> None:
    """Replies that are held are taken in the order of their arrival: an offset that trembles would change that."""
    offset = ClockOffset()
    offset.adjust(1_000_000, 995_000, 1_003_000)
    assert offset.value == 0
    offset.adjust(4_000_000, 1_000_000, 1_010_000)
    assert offset.value == 2_995_000
    offset.adjust(4_000_000, 0, 2_000_000)  # a slow answer: it may have been anywhere in between
    assert offset.value == 2_995_000
    offset.adjust(1_000_000, 999_000, 1_001_000)
    assert offset.value == 0


async def test_the_time_in_an_answer_of_the_broker_is_looked_at() -> None:
    offset = ClockOffset()

    async def answer() -> bytes:
        return b'{"ts": "2026-11-21T10:00:00.123456789Z", "type": "x"}'

    assert (await offset.read(answer()))["type"] == "x"
    assert abs(offset.value) > 3600 * SECOND

    async def silent() -> bytes:
        return b"{}"

    before = offset.value
    await asyncio.gather(offset.read(silent()))
    assert offset.value == before
