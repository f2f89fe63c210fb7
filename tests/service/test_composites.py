"""Composite waits through the whole engine: progress, losers, nested deadlines, approvals one by one (SEMANTICS 3, R10, R11, R12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.errors import IllegalTransition, InvalidRequest, TooLarge
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import ResumeFlow
from nats_taskflow.units import rfc3339
from tests.flows import TOPIC, all_of, answer, any_of, arrives, at_least, buried, counted, external, get, kinds, later, manual, park, timer
from tests.running import VirtualClock, an_input, running


async def test_any_of_resumes_on_the_first_and_closes_the_others() -> None:
    """SEMANTICS R10: the winner closes every sibling leaf; a closed wait consumes nothing."""
    async with running() as run:
        flow = await park(run, any_of(external("a"), external("b"), timer(run, hours=1)))
        assert (await arrives(run, "b", {"n": 2}, event_id="e2")).name == "resumed"
        after = await get(run, flow.id)
        assert after.state_json["resume_event"] == {"1": {"n": 2}}
        assert after.state_json["resume_meta"] == {
            "cause": "event",
            "topic": TOPIC,
            "correlation_id": "b",
            "event_id": "e2",
            "at": rfc3339(run.clock.us),
        }
        assert (await arrives(run, "a", {"n": 1})).name == "held"
        assert await run.store.next_due() is None
        await run.manager.finish(flow.id)
        assert (await arrives(run, "a", {"n": 1})).name == "late"


async def test_progress_is_journaled_durable_and_resumes_the_flow_once(tmp_path: Path) -> None:
    """SEMANTICS R11: each satisfied leaf survives a restart; R12: payloads are keyed by the leaf's number."""
    path, clock = str(tmp_path / "flows.db"), VirtualClock()
    async with running(path, clock=clock) as run:
        flow = await park(run, all_of(external("a"), timer(run, minutes=5), any_of(manual("ann"), external("b"))))
        assert (await arrives(run, "a", "first")).name == "progressed"
        clock.advance(minutes=5)
        assert (await run.waits.tick()).resumed == 0
        assert (await get(run, flow.id)).progress == {"0": "first", "1": {"at": rfc3339(clock.us)}}
    async with running(path, clock=clock) as run:
        assert (await get(run, flow.id)).progress == {"0": "first", "1": {"at": rfc3339(clock.us)}}
        assert (await arrives(run, "a", "again")).name == "held", "the satisfied leaf is closed, also after a restart"
        assert (await arrives(run, "b", "last", event_id="e")).name == "resumed"
        after = await get(run, flow.id)
        assert (after.status, after.progress, after.wait_json) == (FlowStatus.RUNNING, None, None)
        assert after.state_json["resume_event"] == {"0": "first", "1": {"at": rfc3339(clock.us)}, "3": "last"}
        assert (after.state_json["resume_meta"]["cause"], after.state_json["resume_meta"]["event_id"]) == ("event", "e")
        assert await kinds(run, flow.id) == ["created", "started", "waiting", *["wait_progressed"] * 3, "resumed"]
        progressed = [e for e in await run.manager.list_events(flow.id, 100) if e.kind is EventKind.WAIT_PROGRESSED]
        assert [event.payload["leaf"] for event in progressed] == ["0", "1", "3"]
        assert [event.correlation_id for event in progressed] == ["a", None, "b"]


async def test_a_part_that_holds_closes_its_losers_while_the_whole_goes_on() -> None:
    """SEMANTICS R10, R11: in the same transaction, also below a composite that is only a part."""
    async with running() as run:
        flow = await park(run, all_of(any_of(external("a"), external("b"), manual("ann")), external("c")))
        assert (await arrives(run, "a", 1)).name == "progressed"
        assert (await arrives(run, "b", 2)).name == "held", "its sibling has won: the leaf is closed"
        refusal = (await answer(run, flow.id, "ann")).error
        assert isinstance(refusal, IllegalTransition)
        assert (await get(run, flow.id)).progress == {"0": 1}
        assert (await arrives(run, "c", 3)).name == "resumed"
        assert (await get(run, flow.id)).state_json["resume_event"] == {"0": 1, "3": 3}


@pytest.mark.parametrize("on_timeout", ["resume", "fail", "cancel"])
async def test_the_deadline_of_a_part_that_holds_never_fires(on_timeout: str) -> None:
    """SEMANTICS R10: nor does that of a loser below it."""
    async with running() as run:
        part = any_of(external("a"), external("b", timeout="5m", on_timeout=on_timeout), timeout="10m", on_timeout=on_timeout)
        flow = await park(run, all_of(part, external("c", timeout="20m")))
        await arrives(run, "a", 1)
        assert await run.store.next_due() == run.clock.us + 20 * 60 * 1_000_000
        run.clock.advance(minutes=15)
        await run.waits.tick()
        after = await get(run, flow.id)
        assert (after.status, after.progress) == (FlowStatus.WAITING, {"0": 1})


async def test_the_deadlines_of_one_part_are_passed_in_order_and_the_first_closes_the_rest() -> None:
    """SEMANTICS R10: after a long stop several are overdue at once; what the first one closes is not due any more."""
    async with running() as run:
        part = any_of(external("a", timeout="5m"), external("b", timeout="6m", on_timeout="fail"))
        flow = await park(run, all_of(part, manual()))
        run.clock.advance(hours=1)
        await run.waits.tick()
        after = await get(run, flow.id)
        assert (after.status, after.progress) == (FlowStatus.WAITING, {"0": {"timed_out": True}})


async def test_an_inner_deadline_that_resumes_satisfies_its_part_and_closes_what_is_below() -> None:
    """SEMANTICS 3, R10, R12: only leaves are shown in resume_event."""
    async with running() as run:
        flow = await park(run, all_of(all_of(external("a"), external("b"), timeout="5m"), manual("ann")))
        await arrives(run, "a", 1)
        before = run.clock.us
        run.clock.advance(minutes=5)
        await run.waits.tick()
        assert (await get(run, flow.id)).progress == {"0": 1, "node:1": {"timed_out": True}}
        assert (await arrives(run, "b", 2, at_us=before)).name == "held", (
            "one won, by commit: the reply came before the deadline, but too late"
        )
        await answer(run, flow.id, "ann", {"ok": True})
        assert (await get(run, flow.id)).state_json["resume_event"] == {"0": 1, "2": {"ok": True}}


@pytest.mark.parametrize("on_timeout, status", [("fail", FlowStatus.FAILED), ("cancel", FlowStatus.CANCELLED)])
@pytest.mark.parametrize("place", ["leaf", "part"])
async def test_an_inner_deadline_may_end_the_flow(on_timeout: str, status: FlowStatus, place: str) -> None:
    """SEMANTICS 3: on every node."""
    async with running() as run:
        bound = {"timeout": "5m", "on_timeout": on_timeout}
        inner = any_of(external("a", **bound)) if place == "leaf" else any_of(external("a"), **bound)
        flow = await park(run, any_of(inner, external("b")))
        run.clock.advance(minutes=5)
        await run.waits.tick()
        assert (await get(run, flow.id)).status is status
        assert (await arrives(run, "b")).name == "late"


async def test_a_deadline_on_the_whole_resumes_with_timed_out() -> None:
    """SEMANTICS 3, R12."""
    async with running() as run:
        flow = await park(run, all_of(external("a"), external("b"), timeout="5m"))
        await arrives(run, "a", 1)
        run.clock.advance(minutes=5)
        assert (await run.waits.tick()).resumed == 1
        state = (await get(run, flow.id)).state_json
        assert (state["resume_event"], state["resume_meta"]["cause"]) == ({"timed_out": True}, "timeout")


async def test_a_reply_is_bounded_by_every_deadline_above_its_leaf() -> None:
    """SEMANTICS R9: it loses at the earliest of them, even if no timeout has fired yet."""
    async with running() as run:
        flow = await park(run, any_of(all_of(external("a", timeout="9m"), manual(), timeout="5m", on_timeout="fail"), timeout="7m"))
        run.clock.advance(minutes=5)
        outcome = await arrives(run, "a", 1)
        assert (outcome.name, (await get(run, flow.id)).status) == ("late", FlowStatus.FAILED)


async def test_reply_or_24_hours() -> None:
    """SEMANTICS 3: a timer beside a reply; R12: the timer's payload is its time."""
    async with running() as run:
        wait = any_of(external("a"), timer(run, hours=24))
        first, second = await park(run, wait), await park(run, any_of(external("b"), timer(run, hours=24)))
        due = later(run, hours=24)
        assert (await arrives(run, "a", "yes")).name == "resumed"
        run.clock.advance(hours=24)
        assert (await run.waits.tick()).resumed == 1
        assert (await get(run, first.id)).state_json["resume_event"] == {"0": "yes"}
        state = (await get(run, second.id)).state_json
        assert (state["resume_event"], state["resume_meta"]["cause"]) == ({"1": {"at": due}}, "timer")


async def test_two_of_three_approvals_by_hand_or_by_reply() -> None:
    """SEMANTICS R11: N of M, over manual and reply leaves; the third comes too late and is refused."""
    async with running() as run:
        flow = await park(run, at_least(2, manual("ann", prompt="ok?"), manual("bob"), external("carol")))
        outcome = await answer(run, flow.id, "bob", {"ok": True})
        assert (outcome.name, (await get(run, flow.id)).status) == ("applied", FlowStatus.WAITING)
        assert (await arrives(run, "carol", {"ok": False})).name == "resumed"
        assert (await get(run, flow.id)).state_json["resume_event"] == {"1": {"ok": True}, "2": {"ok": False}}
        assert isinstance((await answer(run, flow.id, "ann")).error, IllegalTransition)


async def test_manual_leaves_are_answered_by_number_or_name_and_once() -> None:
    """SEMANTICS 3, R11."""
    async with running() as run:
        flow = await park(run, all_of(external("a"), manual("ann"), manual()))
        assert (await answer(run, flow.id, 1, "by number")).error is None
        for leaf in (1, "ann"):
            assert isinstance((await answer(run, flow.id, leaf, "again")).error, IllegalTransition)
        for leaf in (0, 3, -1, "carol", "1", "2", ""):
            refusal = (await answer(run, flow.id, leaf)).error
            assert isinstance(refusal, InvalidRequest), leaf
            assert refusal.details["path"] == "/leaf"
        assert (await get(run, flow.id)).progress == {"1": "by number"}
        assert (await answer(run, flow.id, 2)).error is None
        assert (await get(run, flow.id)).progress == {"1": "by number", "2": None}
        by = [e.actor for e in await run.manager.list_events(flow.id, 100) if e.kind is EventKind.WAIT_PROGRESSED]
        assert by == ["agent:kate", "agent:kate"]


async def test_the_one_leaf_of_a_plain_manual_wait_can_be_named_too() -> None:
    """SEMANTICS R12: its payload is the resume_event, and the cause is manual."""
    async with running() as run:
        flow = await park(run, manual("ann"))
        assert (await answer(run, flow.id, "ann", {"ok": True})).error is None
        state = (await get(run, flow.id)).state_json
        assert (state["resume_event"], state["resume_meta"]["cause"]) == ({"ok": True}, "manual")


async def test_a_resume_of_the_whole_ends_a_composite_whatever_is_missing() -> None:
    """SEMANTICS 2: explicit, whatever the wait; R8: only the generation it saw."""
    async with running() as run:
        flow = await park(run, all_of(external("a"), external("b")))
        await arrives(run, "a", 1)
        outcome = await run.engine.submit(ResumeFlow(flow_id=flow.id, patch={"by": "hand"}, wait_id=(flow.wait_id or 0) - 1))
        assert isinstance(outcome.error, IllegalTransition)
        await run.manager.resume(flow.id, {"by": "hand"})
        after = await get(run, flow.id)
        assert (after.status, after.state_json["by"]) == (FlowStatus.RUNNING, "hand")
        assert (await arrives(run, "b")).name == "held"


async def test_parking_takes_held_replies_for_each_leaf_oldest_first() -> None:
    """SEMANTICS R4, R11: what is there already makes progress, or resumes at once."""
    async with running() as run:
        for correlation_id, payload in (("b", 1), ("a", 2), ("b", 3), ("x", 4)):
            run.clock.advance(seconds=1)
            assert (await arrives(run, correlation_id, payload)).name == "held"
        flow = await park(run, all_of(external("a"), any_of(external("b"), external("x")), manual()))
        assert flow.progress == {"1": 1, "0": 2}
        assert (await counted(run))["held"] == 2
        done = await park(run, any_of(external("x"), external("b")))
        assert (done.status, done.state_json["resume_event"]) == (FlowStatus.RUNNING, {"1": 3})
        assert (await counted(run))["held"] == 1, "only one is used up; the loser's reply stays held"


async def test_payloads_that_would_be_too_large_together_go_to_the_dead_letters_and_the_wait_goes_on() -> None:
    """SEMANTICS R11, R14: a wait of 64 leaves must not grow without bound."""
    async with running(policy=Policy(max_state_bytes=1000)) as run:
        flow = await park(run, all_of(external("a"), external("b"), manual("ann")))
        assert (await arrives(run, "a", "x" * 1500)).name == "progressed"
        assert (await arrives(run, "b", "y" * 600)).name == "rejected"
        assert [(letter.reason, letter.body) for letter in await buried(run)] == [("too_large", b'"' + b"y" * 600 + b'"')]
        assert isinstance((await answer(run, flow.id, "ann", "z" * 600)).error, TooLarge)
        assert (await arrives(run, "b", "y")).name == "progressed"
        assert (await answer(run, flow.id, "ann")).error is None
        assert (await get(run, flow.id)).status is FlowStatus.RUNNING


async def test_a_reply_without_a_payload_satisfies_a_leaf_as_null() -> None:
    """SEMANTICS R12: the reference's resume message may come without one."""
    async with running() as run:
        flow = await park(run, all_of(external("a"), external("b")))
        assert (await arrives(run, "a")).name == "progressed"
        assert await run.waits.try_resume_external(flow.id, TOPIC, "b") is not None
        assert (await get(run, flow.id)).state_json["resume_event"] == {"0": None, "1": None}


async def test_the_largest_wait_is_carried_through() -> None:
    """SEMANTICS 3: depth 4, 64 leaves."""
    async with running() as run:
        parts: list[dict[str, Any]] = [
            all_of(any_of(external(f"{n}a"), external(f"{n}b")), any_of(manual(f"m{n}"), external(f"{n}c"))) for n in range(16)
        ]
        flow = await park(run, all_of(*parts))
        for n in range(16):
            assert (await arrives(run, f"{n}b", n)).name == "progressed"
            assert (await arrives(run, f"{n}a", n)).name == "held"
            outcome = await answer(run, flow.id, f"m{n}", n)
            assert outcome.error is None
        after = await get(run, flow.id)
        assert after.status is FlowStatus.RUNNING
        assert after.state_json["resume_event"] == {str(4 * n + leaf): n for n in range(16) for leaf in (1, 2)}
        assert await counted(run) == {"flows.running": 1, "held": 16, "inbox.held": 16, "inbox.progressed": 16}


async def test_the_reason_of_an_answer_is_journaled() -> None:
    """CONTRACT 2: `resume` takes a reason, also for one leaf."""
    async with running() as run:
        flow = await run.manager.create_managed(an_input())
        await run.manager.start_running(flow.id)
        leaves = [{"kind": "manual", "name": name} for name in ("ann", "bob")]
        await run.manager.set_waiting(flow.id, {"kind": "all_of", "conditions": leaves})
        await run.engine.submit(ResumeFlow(flow_id=flow.id, leaf="ann", patch={"yes": True}, reason="looked at it"))
        progressed = (await run.manager.list_events(flow.id, 100))[-1]
        assert progressed.payload == {"leaf": "0", "payload": {"yes": True}, "reason": "looked at it"}
