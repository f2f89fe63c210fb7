"""SEMANTICS R8, R9 and R11: generations, the race of replies against deadlines, and composite waits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nats_taskflow.errors import FlowError, HorizonExceeded, IllegalTransition, InvalidRequest, TimerInPast
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import DeadlinePassed, ResumeFlow
from nats_taskflow.units import rfc3339
from tests.running import Running, running
from tests.service.acting import Inlet, external, journal, now, parked, started, timer

SECOND = 1_000_000


# SEMANTICS R8: what saw an older generation never touches a newer wait


async def test_a_stale_timer_does_not_touch_the_next_wait() -> None:
    """SEMANTICS R8."""
    async with running() as run:
        first = await parked(run, timer(run, seconds=1))
        await run.manager.resume(first.id)
        second = await run.manager.set_waiting(first.id, {"kind": "manual"})
        assert first.wait_id is not None
        outcome = await run.engine.submit(DeadlinePassed(flow_id=first.id, wait_id=first.wait_id, at_us=run.clock.us + 10 * SECOND))
        assert outcome.name == "unmatched"
        assert (await now(run, first)) == second


async def test_a_stale_timer_does_not_fire_the_next_timer_early() -> None:
    """SEMANTICS R8: even where the next wait is a timer as well, and due by the stale one's clock."""
    async with running() as run:
        first = await parked(run, timer(run, seconds=1))
        await run.manager.resume(first.id)
        second = await run.manager.set_waiting(first.id, timer(run, seconds=5))
        await run.engine.submit(DeadlinePassed(flow_id=first.id, wait_id=first.wait_id or 0, at_us=run.clock.us + 10 * SECOND))
        assert (await now(run, first)) == second


async def test_a_timer_seen_due_before_a_resume_of_the_same_batch_does_nothing() -> None:
    """SEMANTICS R8: the check is made inside the transaction that resumes."""
    async with running() as run:
        flow = await parked(run, timer(run, seconds=1))
        run.clock.advance(seconds=2)
        resumed = asyncio.ensure_future(run.manager.resume(flow.id))
        parking = asyncio.ensure_future(run.manager.set_waiting(flow.id, {"kind": "manual"}))
        await asyncio.sleep(0)  # both are submitted now
        fired = await run.engine.submit(DeadlinePassed(flow_id=flow.id, wait_id=flow.wait_id or 0, at_us=run.clock.us))
        await resumed
        parked_again = await parking
        assert fired.name == "unmatched"
        assert (await now(run, flow)) == parked_again


async def test_a_reply_to_an_earlier_wait_does_not_resume_a_wait_for_something_else() -> None:
    """SEMANTICS R8 and I-15."""
    async with running() as run:
        flow, inlet = await parked(run, external("first")), Inlet(run)
        await run.manager.resume(flow.id)
        second = await run.manager.set_waiting(flow.id, external("second"))
        assert (await inlet.reply({"n": 1}, correlation_id="first")).name == "held"
        assert (await now(run, flow)) == second


async def test_a_resume_that_saw_an_older_generation_is_refused() -> None:
    """SEMANTICS R8."""
    async with running() as run:
        first = await parked(run, {"kind": "manual"})
        await run.manager.resume(first.id)
        second = await run.manager.set_waiting(first.id, {"kind": "manual"})
        outcome = await run.engine.submit(ResumeFlow(flow_id=first.id, wait_id=first.wait_id))
        assert isinstance(outcome.error, IllegalTransition)
        assert (await now(run, first)) == second
        assert (await run.engine.submit(ResumeFlow(flow_id=first.id, wait_id=second.wait_id))).name == "applied"


async def test_every_parking_is_a_generation_of_its_own() -> None:
    """SEMANTICS 3."""
    async with running() as run:
        flow, seen = await started(run), set()
        for _ in range(5):
            seen.add((await run.manager.set_waiting(flow.id, {"kind": "manual"})).wait_id)
            await run.manager.resume(flow.id)
        assert len(seen) == 5


# SEMANTICS R9: replies against deadlines


@pytest.mark.parametrize("early_us, wins", [(1, True), (0, False), (-1, False)])
async def test_when_the_reply_reached_the_broker_decides_against_the_deadline(early_us: int, wins: bool) -> None:
    """SEMANTICS R9: before it wins although the worker was away; at or after it loses although the timeout has not fired yet."""
    async with running() as run:
        flow, inlet = await parked(run, external(timeout="10s")), Inlet(run)
        deadline = run.clock.us + 10 * SECOND
        run.clock.advance(seconds=60)
        outcome = await inlet.reply({"n": 1}, arrived_us=deadline - early_us)
        state = (await now(run, flow)).state_json
        assert outcome.name == ("resumed" if wins else "held")
        assert state["resume_event"] == ({"n": 1} if wins else {"timed_out": True})
        assert (await run.waits.tick()).resumed == 0
        assert (await journal(run, flow)).count("resumed") == 1


async def test_a_reply_after_the_timeout_fired_is_not_for_this_wait() -> None:
    """SEMANTICS R9: exactly one wins, by commit."""
    async with running() as run:
        flow, inlet = await parked(run, external(timeout="10s")), Inlet(run)
        arrived = run.clock.us + SECOND
        run.clock.advance(seconds=10)
        await run.waits.tick()
        after = await now(run, flow)
        assert (await inlet.reply({"n": 1}, arrived_us=arrived)).name == "held"
        assert (await now(run, flow)) == after


async def test_a_timeout_and_a_reply_in_one_batch_resume_the_flow_once() -> None:
    """SEMANTICS R9."""
    async with running() as run:
        for order in (0, 1):
            flow, inlet = await parked(run, external(f"c{order}", timeout="10s")), Inlet(run, stream=f"S{order}")
            arrived = run.clock.us
            run.clock.advance(seconds=10)
            both = [inlet.reply({"n": 1}, correlation_id=f"c{order}", arrived_us=arrived), run.waits.tick()]
            await asyncio.gather(*(both if order else reversed(both)))
            assert (await journal(run, flow)).count("resumed") == 1


@pytest.mark.parametrize(
    "on_timeout, status, outcome",
    [("resume", FlowStatus.RUNNING, "held"), ("fail", FlowStatus.FAILED, "late"), ("cancel", FlowStatus.CANCELLED, "late")],
)
async def test_a_reply_that_lost_brings_the_timeout_about_and_has_an_outcome_of_its_own(
    on_timeout: str, status: FlowStatus, outcome: str
) -> None:
    """SEMANTICS R7 and R9: the flow it came too late for has ended by the deadline it missed."""
    async with running() as run:
        flow, inlet = await parked(run, external(timeout="10s", on_timeout=on_timeout)), Inlet(run)
        run.clock.advance(seconds=11)
        assert (await inlet.reply({"n": 1})).name == outcome
        assert (await now(run, flow)).status is status


@pytest.mark.parametrize("on_timeout, status", [("fail", FlowStatus.FAILED), ("cancel", FlowStatus.CANCELLED)])
async def test_a_deadline_does_what_the_wait_says(on_timeout: str, status: FlowStatus) -> None:
    """SEMANTICS 3."""
    async with running() as run:
        flow = await parked(run, {"kind": "manual", "timeout": "1h", "on_timeout": on_timeout})
        run.clock.advance(hours=1)
        report = await run.waits.tick()
        assert (report.scanned, report.still_waiting, report.errors) == (1, 0, 0)
        after = await now(run, flow)
        assert after.status is status
        if on_timeout == "fail":
            assert after.state_json["failure"] == {"reason": "wait timed out", "at": rfc3339(run.clock.us)}


async def test_the_default_timeout_is_for_waits_that_name_none() -> None:
    """SEMANTICS 3."""
    async with running(policy=Policy(default_timeout_us=60 * SECOND)) as run:
        by_default, own = await parked(run, external("a")), await parked(run, external("b", timeout="1h"))
        plain = await parked(run, timer(run, hours=2))
        run.clock.advance(seconds=60)
        assert (await run.waits.tick()).resumed == 1
        assert [(await now(run, one)).status.value for one in (by_default, own, plain)] == ["running", "waiting", "waiting"]


# SEMANTICS 3: validation


def at(year: int, offset: int) -> str:
    zone = f"{'+' if offset >= 0 else '-'}{abs(offset):02}:00"
    return f"{year:04}-{'12-31T23' if year == 9999 else '01-01T00'}:30:00{zone}"


@pytest.mark.parametrize(
    "condition, refusal",
    [
        ({"kind": "timer", "at": "2026-11-21T09:59:59.999999Z"}, TimerInPast),
        ({"kind": "timer", "at": "2027-12-26T10:00:00.000001Z"}, HorizonExceeded),
        ({"kind": "manual", "deadline": "2026-11-21T09:00:00Z"}, TimerInPast),
        ({"kind": "manual", "deadline": "2027-12-27T09:00:00Z"}, HorizonExceeded),
        ({"kind": "manual", "timeout": "401d"}, HorizonExceeded),
        ({"kind": "manual", "timeout": "soon"}, InvalidRequest),
        ({"kind": "manual", "timeout": "1h", "deadline": "2026-11-21T11:00:00Z"}, InvalidRequest),
        ({"kind": "timer", "at": "2026-11-21T10:00:00"}, InvalidRequest),
        ({"kind": "timer", "at": at(9999, -5)}, FlowError),
        ({"kind": "timer", "at": at(1, 5)}, FlowError),
        ({"kind": "manual", "deadline": at(9999, -5)}, FlowError),
        ({"kind": "timer"}, InvalidRequest),
        ({"kind": "timer", "at": "2026-11-21T11:00:00Z", "extra": 1}, InvalidRequest),
        ({"kind": "never"}, InvalidRequest),
        ({"kind": "any_of", "conditions": []}, InvalidRequest),
        ({"kind": "at_least", "count": 0, "conditions": [{"kind": "manual"}]}, InvalidRequest),
        ({"kind": "at_least", "count": 2, "conditions": [{"kind": "manual"}]}, InvalidRequest),
        ({"kind": "any_of", "conditions": [external(), external()]}, InvalidRequest),
    ],
)
async def test_a_wait_that_cannot_be_is_refused_before_the_flow_is_parked(condition: dict[str, Any], refusal: type[FlowError]) -> None:
    """SEMANTICS 3, last paragraph: a refusal, never a defect."""
    async with running() as run:
        flow = await started(run)
        with pytest.raises(refusal) as refused:
            await run.manager.set_waiting(flow.id, condition)
        assert refused.value.http == 400
        assert (await now(run, flow)) == flow


async def test_a_timer_at_this_very_moment_and_one_at_the_horizon_are_fine() -> None:
    """SEMANTICS 3."""
    async with running() as run:
        at_once, far = await parked(run, timer(run)), await parked(run, timer(run, days=30))
        assert (await run.waits.tick()).resumed == 1
        assert (await now(run, at_once)).status is FlowStatus.RUNNING
        assert (await now(run, far)).status is FlowStatus.WAITING


async def test_a_timer_of_another_offset_is_the_same_instant() -> None:
    """ARCHITECTURE 3: ISO text misorders across offsets."""
    async with running() as run:
        there = (run.clock.now + timedelta(hours=1)).astimezone(tz=datetime.fromisoformat("2026-01-01T00:00:00-09:00").tzinfo)
        flow = await parked(run, {"kind": "timer", "at": there.isoformat()})
        run.clock.advance(minutes=59)
        assert (await run.waits.tick()).resumed == 0
        assert (await run.waits.tick_at(there.astimezone(UTC))).resumed == 1
        assert (await now(run, flow)).status is FlowStatus.RUNNING


# SEMANTICS R11: composites


def both(kind: str, *conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": kind, "conditions": list(conditions), **more}


async def resumed_with(run: Running, flow: Flow) -> Any:
    after = await now(run, flow)
    assert after.status is FlowStatus.RUNNING
    return after.state_json["resume_event"]


async def test_any_of_resumes_on_the_first_and_closes_the_others() -> None:
    """SEMANTICS R10 and R12."""
    async with running() as run:
        flow, inlet = await parked(run, both("any_of", external("a"), external("b"), timer(run, hours=1))), Inlet(run)
        assert (await inlet.reply({"n": "b"}, correlation_id="b")).name == "resumed"
        assert await resumed_with(run, flow) == {"1": {"n": "b"}}
        assert (await inlet.reply({"n": "a"}, correlation_id="a")).name == "held"
        run.clock.advance(hours=2)
        assert (await run.waits.tick()).resumed == 0


async def test_all_of_keeps_what_came_and_resumes_once_all_have() -> None:
    """SEMANTICS R11."""
    async with running() as run:
        flow, inlet = await parked(run, both("all_of", external("a"), external("b"))), Inlet(run)
        assert (await inlet.reply({"n": "a"}, correlation_id="a", event_id="e1")).name == "progressed"
        assert (await inlet.reply({"n": "again"}, correlation_id="a", event_id="e2")).name == "held"
        assert (await inlet.reply({"n": "b"}, correlation_id="b", event_id="e3")).name == "resumed"
        assert await resumed_with(run, flow) == {"0": {"n": "a"}, "1": {"n": "b"}}
        assert (await journal(run, flow))[2:] == ["waiting", "wait_progressed", "wait_progressed", "resumed"]


async def test_a_leaf_satisfied_by_a_held_reply_at_the_parking_takes_no_second_one() -> None:
    """SEMANTICS R10 and R11: a closed leaf consumes nothing, also one that closed while the wait opened."""
    async with running() as run:
        inlet = Inlet(run)
        await inlet.reply({"n": "early"}, correlation_id="a", event_id="e1")
        flow = await parked(run, both("all_of", external("a"), external("b")))
        assert flow.progress == {"0": {"n": "early"}}
        assert (await inlet.reply({"n": "second"}, correlation_id="a", event_id="e2")).name == "held"
        await inlet.reply({"n": "b"}, correlation_id="b", event_id="e3")
        assert await resumed_with(run, flow) == {"0": {"n": "early"}, "1": {"n": "b"}}


async def test_of_two_held_replies_for_one_leaf_only_the_older_is_taken() -> None:
    """SEMANTICS R4 and R11."""
    async with running() as run:
        inlet = Inlet(run)
        for n in (1, 2):
            await inlet.reply({"n": n}, correlation_id="a", event_id=f"e{n}", arrived_us=run.clock.us + n)
        flow = await parked(run, both("all_of", external("a"), external("b")))
        assert flow.progress == {"0": {"n": 1}}
        assert (await run.store.counts())["held"] == 1
        await run.manager.cancel(flow.id)
        assert (await parked(run, external("a"))).state_json["resume_event"] == {"n": 2}


async def test_at_least_resumes_with_as_many_as_it_needs(tmp_path: Any) -> None:
    """SEMANTICS R11: progress survives a restart."""
    path = str(tmp_path / "t.db")
    async with running(path) as run:
        flow = await parked(run, both("at_least", external("a"), external("b"), external("c"), count=2))
        await Inlet(run).reply({"n": "c"}, correlation_id="c")
    async with running(path) as run:
        assert (await Inlet(run, stream="S2").reply({"n": "a"}, correlation_id="a")).name == "resumed"
        assert await resumed_with(run, flow) == {"0": {"n": "a"}, "2": {"n": "c"}}


async def test_a_nested_deadline_satisfies_its_part_only() -> None:
    """SEMANTICS 3 and R11: the inner wait times out, the outer one goes on."""
    async with running() as run:
        inner = both("all_of", external("a"), external("b"), timeout="10s")
        flow, inlet = await parked(run, both("all_of", inner, external("c"))), Inlet(run)
        run.clock.advance(seconds=10)
        await run.waits.tick()
        assert (await now(run, flow)).status is FlowStatus.WAITING
        assert (await inlet.reply({"n": "c"}, correlation_id="c")).name == "resumed"
        assert await resumed_with(run, flow) == {"2": {"n": "c"}}


async def test_a_leafs_own_deadline_counts_as_its_answer() -> None:
    """SEMANTICS 3."""
    async with running() as run:
        flow = await parked(run, both("all_of", external("a", timeout="10s"), timer(run, seconds=5)))
        run.clock.advance(seconds=5)
        assert (await run.waits.tick()).still_waiting == 1
        run.clock.advance(seconds=5)
        assert (await run.waits.tick()).resumed == 1
        assert await resumed_with(run, flow) == {"0": {"timed_out": True}, "1": {"at": "2026-11-21T10:00:05Z"}}
