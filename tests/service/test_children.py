"""Parents and children, and waits for the end of another flow (SEMANTICS 3, 6, R3, R13; issue 3, item 7)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.engine.id_mint import new_id
from nats_taskflow.errors import AlreadyTerminal, CancelPending, FlowError, Forbidden, InvalidRequest, NotFound, WaitConflict
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.stimuli import CancelFlow, FailFlow, FinishFlow, ResumeFlow, StartFlow, Stimulus
from tests.flows import (
    BOB,
    all_of,
    any_of,
    arrives,
    at_least,
    buried,
    cancel,
    counted,
    did,
    ends,
    external,
    get,
    kinds,
    manual,
    outcome_of,
    park,
    parking,
    refused,
    said,
    start,
    timer,
)
from tests.running import running

CANCELLED, FINISHED, RUNNING, WAITING = FlowStatus.CANCELLED, FlowStatus.FINISHED, FlowStatus.RUNNING, FlowStatus.WAITING


def child_of(parent: str, **more: Any) -> StartFlow:
    owner = {"owner_session_key": "agent:kate:session:main"}
    return StartFlow(flow_id=new_id(), controller_id="k", goal="g", parent_flow_id=parent, **{**owner, **more})


async def statuses(run: Any, *flows: Any) -> list[FlowStatus]:
    return [(await get(run, flow.id)).status for flow in flows]


# Starting a child.


async def test_a_child_knows_its_parent_in_row_and_journal() -> None:
    async with running() as run:
        parent = await start(run)
        child = await start(run, parent=parent.id)
        assert (await get(run, child.id)).parent_flow_id == parent.id
        assert (await run.manager.list_events(child.id, 1))[0].payload["parent_flow_id"] == parent.id


@pytest.mark.parametrize("ending", ["cancel", "finish", "fail"])
async def test_a_child_of_a_flow_that_has_ended_is_refused(ending: str) -> None:
    async with running() as run:
        parent = await start(run)
        ends_with: dict[str, Stimulus] = {
            "cancel": CancelFlow(flow_id=parent.id),
            "finish": FinishFlow(flow_id=parent.id),
            "fail": FailFlow(flow_id=parent.id, reason="r"),
        }
        await did(run, ends_with[ending])
        outcome = await run.engine.submit(child_of(parent.id))
        assert isinstance(outcome.error, AlreadyTerminal)


async def test_a_child_of_nobody_of_a_stranger_or_of_a_flow_being_cancelled_is_refused() -> None:
    async with running() as run:
        stranger, leaving = await start(run, owner=BOB), await start(run)
        await run.manager.request_cancel(leaving.id)
        for parent, error in ((new_id(), NotFound), (stranger.id, Forbidden), (leaving.id, CancelPending)):
            assert isinstance((await run.engine.submit(child_of(parent))).error, error)
        assert (await counted(run))["flows.running"] == 2


async def test_a_repeated_start_finds_the_child_even_after_its_parent_ended() -> None:
    """SEMANTICS 6: the idempotency key returns the existing flow."""
    async with running() as run:
        parent = await start(run)
        child = await did(run, child_of(parent.id, idempotency_key="once"))
        await run.manager.finish(parent.id)
        assert (await did(run, child_of(parent.id, idempotency_key="once"))).id == child.id


# Waiting for the end of another flow.


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("ending, status", [("finish", "finished"), ("fail", "failed"), ("cancel", "cancelled")])
async def test_a_watcher_resumes_with_the_final_state_whenever_it_parks(ending: str, status: str, before: bool) -> None:
    """SEMANTICS R4, R12: before the end or after it."""
    async with running() as run:
        watched, watcher = await start(run), await start(run)
        if not before:
            assert (await park(run, ends(watched.id.upper()), watcher.id)).status is WAITING
        what: dict[str, Stimulus] = {
            "finish": FinishFlow(flow_id=watched.id, final_state={"n": 1}),
            "fail": FailFlow(flow_id=watched.id, reason="broke"),
            "cancel": CancelFlow(flow_id=watched.id),
        }
        ended = await did(run, what[ending])
        if before:
            await park(run, ends(watched.id), watcher.id)
        after = await get(run, watcher.id)
        assert after.status is RUNNING
        assert after.state_json["resume_event"] == {"flow_id": watched.id, "status": status, "state": ended.state_json}
        meta = after.state_json["resume_meta"]
        assert (meta["cause"], meta["topic"], meta["correlation_id"]) == ("event", "flow", watched.id)
        assert await kinds(run, watcher.id) == ["created", "started", "waiting", "resumed"]
        assert await run.store.next_due() is None


async def test_a_flow_waits_neither_for_itself_nor_for_a_stranger_nor_for_nobody() -> None:
    """SEMANTICS R3."""
    async with running() as run:
        stranger, flow = await start(run, owner=BOB), await start(run)
        own = (await run.engine.submit(parking(flow.id, ends(flow.id.upper())))).error
        assert isinstance(own, InvalidRequest)
        for awaited, error in ((stranger.id, Forbidden), (new_id(), NotFound), ("no id at all", NotFound)):
            for wait, part in ((ends(awaited), ""), (any_of(manual(), ends(awaited)), "/conditions/1")):
                refusal = await refused(run, wait)
                assert isinstance(refusal, error)
                assert refusal.details["path"] == f"/wait_condition{part}/flow_id"


async def test_several_watch_one_flow_and_one_watches_several() -> None:
    """SEMANTICS R6, R11: as with mode all."""
    async with running() as run:
        one, two, three = [await start(run) for _ in range(3)]
        alone = [await park(run, ends(one.id)) for _ in range(3)]
        both, most = (
            await park(run, all_of(ends(one.id), ends(two.id))),
            await park(run, at_least(2, ends(one.id), ends(two.id), ends(three.id))),
        )
        await run.manager.finish(one.id, {"n": 1})
        assert await statuses(run, *alone, both, most) == [RUNNING] * 3 + [WAITING] * 2
        await run.manager.finish(two.id, {"n": 2})
        assert await statuses(run, both, most, three) == [RUNNING, RUNNING, RUNNING]
        event = (await get(run, both.id)).state_json["resume_event"]
        assert [event[leaf]["state"] for leaf in ("0", "1")] == [{"n": 1}, {"n": 2}]


async def test_a_wait_for_ended_flows_takes_no_more_of_them_than_it_needs() -> None:
    """SEMANTICS R10."""
    async with running() as run:
        one, two = await start(run), await start(run)
        await run.manager.finish(one.id)
        await run.manager.finish(two.id)
        flow = await park(run, all_of(any_of(ends(one.id), ends(two.id)), manual()))
        assert list(flow.progress or {}) == ["0"]


async def test_a_wait_that_an_ended_flow_meets_at_once_leaves_held_replies_alone() -> None:
    """SEMANTICS R4, R10, R13: the wait is over before a held reply is looked at; the flow must not be taken for damaged."""
    async with running() as run:
        ended = await start(run)
        await run.manager.finish(ended.id)
        await arrives(run, "c", 1)
        flow = await park(run, any_of(external("c"), ends(ended.id)))
        assert (flow.status, list(flow.state_json["resume_event"])) == (RUNNING, ["1"])
        assert (await counted(run))["held"] == 1


async def test_flows_that_end_in_one_batch_with_the_parking_are_seen() -> None:
    """SEMANTICS R4, R8: whatever the order in the batch."""
    async with running() as run:
        flows = [await start(run) for _ in range(4)]
        wait = all_of(*(ends(flow.id) for flow in flows[:3]))
        what: list[Stimulus] = [
            FinishFlow(flow_id=flows[0].id),
            parking(flows[3].id, wait),
            CancelFlow(flow_id=flows[1].id),
            FailFlow(flow_id=flows[2].id, reason="r"),
        ]
        outcomes = await asyncio.gather(*[run.engine.submit(one) for one in what])
        assert [outcome.error for outcome in outcomes] == [None] * 4
        after = await get(run, flows[3].id)
        assert after.status is RUNNING
        assert [after.state_json["resume_event"][leaf]["status"] for leaf in "012"] == ["finished", "cancelled", "failed"]


async def test_a_watcher_that_was_resumed_or_parked_anew_in_the_same_batch_is_left_alone() -> None:
    """SEMANTICS R8: the end of a flow never touches a newer wait."""
    async with running() as run:
        watched, watcher = await start(run), await start(run)
        await park(run, ends(watched.id), watcher.id)
        what: list[Stimulus] = [FinishFlow(flow_id=watched.id), ResumeFlow(flow_id=watcher.id), parking(watcher.id, manual())]
        outcomes = await asyncio.gather(*[run.engine.submit(one) for one in what])
        assert [outcome.error for outcome in outcomes] == [None] * 3
        assert (await get(run, watcher.id)).status is WAITING


async def test_a_watcher_that_is_being_cancelled_stays_so() -> None:
    """SEMANTICS 2: with a cancel intent only cancelled is legal."""
    async with running() as run:
        watched = await start(run)
        watcher = await park(run, ends(watched.id))
        await run.manager.request_cancel(watcher.id)
        await run.manager.finish(watched.id)
        assert (await get(run, watcher.id)).status is WAITING
        await run.waits.tick()
        assert (await get(run, watcher.id)).status is CANCELLED


async def test_a_wait_for_a_flow_has_a_deadline_like_any_other() -> None:
    """SEMANTICS 3, R9."""
    async with running() as run:
        watched = await start(run)
        watcher = await park(run, ends(watched.id, timeout="1m"))
        run.clock.advance(minutes=1)
        await run.waits.tick()
        assert (await get(run, watcher.id)).state_json["resume_event"] == {"timed_out": True}
        await run.manager.finish(watched.id)
        assert await kinds(run, watcher.id) == ["created", "started", "waiting", "resumed"]


async def test_no_reply_can_pretend_that_a_flow_ended() -> None:
    """SEMANTICS R1, R3: the topic of ends holds a control character, which no reply may; another's pair is not opened by a wait."""
    async with running() as run:
        watched = await start(run)
        watcher = await park(run, ends(watched.id))
        assert isinstance(await refused(run, external(watched.id, topic="\x1fflow", mode="all")), InvalidRequest)
        assert (await arrives(run, watched.id, 1, topic="flow")).name == "held"
        assert (await get(run, watcher.id)).status is WAITING


# Cancelling a family.


async def family(run: Any) -> list[Any]:
    """Start a parent, a child that waits, a child that is created, a grandchild that runs, and a child that has ended."""
    parent = await start(run)
    waiting, created, ended = (
        await start(run, parent=parent.id),
        await start(run, parent=parent.id, hold=True),
        await start(run, parent=parent.id),
    )
    grandchild = await start(run, parent=waiting.id)
    await park(run, any_of(external(f"child of {parent.id}"), timer(run, hours=1)), waiting.id)
    await run.manager.finish(ended.id)
    return [parent, waiting, created, grandchild, ended]


async def test_a_cancelled_parent_takes_its_whole_family_along_in_one_transaction() -> None:
    """SEMANTICS 2; issue 3: reported in the outcome, generation by generation."""
    async with running() as run:
        parent, waiting, created, grandchild, ended = await family(run)
        commits: list[int] = []
        run.engine.listen(lambda batch: commits.append(len(batch.flows)))
        outcome = await cancel(run, parent.id, reason="enough")
        assert commits == [4]
        assert await statuses(run, parent, waiting, created, grandchild, ended) == [CANCELLED] * 4 + [FINISHED]
        assert outcome_of(outcome)["cancelled_children"]["ids"] == [waiting.id, created.id, grandchild.id]
        last = (await run.manager.list_events(grandchild.id, 10))[-1]
        assert (last.actor, last.payload["reason"]) == ("worker", f"parent flow {waiting.id} was cancelled")
        assert last.cause == f"{waiting.id}:{(await get(run, waiting.id)).seq}"
        assert await run.store.next_due() is None
        assert (await arrives(run, f"child of {parent.id}", 1)).name == "late"


async def test_with_cascade_false_the_children_go_on() -> None:
    async with running() as run:
        parent, waiting, created, grandchild, _ = await family(run)
        outcome = await said(run, CancelFlow(flow_id=parent.id, cascade=False), command_id="x")
        assert "cancelled_children" not in outcome_of(outcome)
        assert await statuses(run, parent, waiting, created, grandchild) == [CANCELLED, WAITING, FlowStatus.CREATED, RUNNING]


async def test_children_outlive_a_parent_that_finishes_or_fails() -> None:
    async with running() as run:
        for end in ("finish", "fail"):
            parent = await start(run)
            child = await start(run, parent=parent.id)
            await (run.manager.finish(parent.id) if end == "finish" else run.manager.fail(parent.id, "r"))
            assert (await get(run, child.id)).status is RUNNING


@pytest.mark.parametrize("how", ["on_timeout", "request_cancel", "late reply"])
async def test_whatever_cancels_the_parent_cancels_the_children(how: str) -> None:
    """SEMANTICS 3, R7."""
    async with running() as run:
        parent = await start(run)
        child = await start(run, parent=parent.id)
        grandchild = await start(run, parent=child.id)
        await park(run, external(timeout="1m", on_timeout="cancel"), parent.id)
        if how != "on_timeout":
            await run.manager.request_cancel(parent.id)
        if how == "late reply":
            assert (await arrives(run, "c")).name == "late"
        else:
            run.clock.advance(minutes=1)
            assert (await run.waits.tick()).cancelled == 1
        assert await statuses(run, parent, child, grandchild) == [CANCELLED] * 3


async def test_a_repeat_of_the_cancel_returns_the_same_bytes() -> None:
    """SEMANTICS 6: with the list of children; later, after a restart of the engine, and within the same batch."""
    async with running() as run:
        parent, waiting, created, grandchild, _ = await family(run)
        what = CancelFlow(flow_id=parent.id)
        first, second = await asyncio.gather(said(run, what, command_id="x"), said(run, what, command_id="x"))
        later = await said(run, what, command_id="x")
        assert outcome_of(first)["cancelled_children"]["ids"] == [waiting.id, created.id, grandchild.id]
        assert [(o.name, o.result) for o in (second, later)] == [("duplicate", first.result)] * 2
        stored = await run.store.outcome("cmd:kate", "x")
        assert stored is not None
        assert stored.result == first.result


async def test_each_of_several_cancels_in_one_batch_names_its_own_descendants() -> None:
    async with running() as run:
        one, two = await family(run), await family(run)
        cancels = [said(run, CancelFlow(flow_id=flow.id), command_id=flow.id) for flow in (one[1], one[0], two[0])]
        outcomes = await asyncio.gather(*cancels)
        told = [outcome_of(outcome)["cancelled_children"]["ids"] for outcome in outcomes]
        assert told == [[one[3].id], [one[2].id], [two[1].id, two[2].id, two[3].id]]


async def test_a_child_that_is_started_in_the_batch_of_the_cancel_is_cancelled_or_refused() -> None:
    """SEMANTICS R8: no child slips through."""
    async with running() as run:
        parent = await start(run)
        early, late = child_of(parent.id), child_of(parent.id)
        outcomes = await asyncio.gather(*[run.engine.submit(what) for what in (early, CancelFlow(flow_id=parent.id), late)])
        assert isinstance(outcomes[2].error, AlreadyTerminal)
        assert (await get(run, early.flow_id)).status is CANCELLED
        assert outcome_of(outcomes[1])["cancelled_children"]["ids"] == [early.flow_id]


async def test_a_watcher_that_is_also_a_child_is_cancelled_and_not_resumed() -> None:
    """SEMANTICS 2: one end for each flow, whatever the order of what follows."""
    async with running() as run:
        parent = await start(run)
        child, stranger = await start(run, parent=parent.id), await start(run)
        await park(run, ends(parent.id), child.id)
        await park(run, ends(child.id), stranger.id)
        await cancel(run, parent.id)
        after = await get(run, child.id)
        assert after.status is CANCELLED
        assert (await get(run, stranger.id)).state_json["resume_event"]["status"] == "cancelled"


async def test_a_parent_that_waits_for_its_child_goes_on_when_the_child_is_cancelled() -> None:
    async with running() as run:
        parent = await start(run)
        child = await start(run, parent=parent.id)
        await park(run, ends(child.id), parent.id)
        await cancel(run, child.id)
        assert await statuses(run, parent, child) == [RUNNING, CANCELLED]


async def test_two_flows_that_wait_for_each_other_are_freed_by_the_cancel_of_one() -> None:
    async with running() as run:
        one, two = await start(run), await start(run)
        await park(run, ends(two.id), one.id)
        await park(run, ends(one.id), two.id)
        await cancel(run, one.id)
        assert await statuses(run, one, two) == [CANCELLED, RUNNING]


@pytest.mark.parametrize("column", ["wait_json", "state_json"])
async def test_a_damaged_watcher_or_child_does_not_stop_the_end_of_another_flow(tmp_path: Path, column: str) -> None:
    """SEMANTICS R13."""
    path = str(tmp_path / "flows.db")
    async with running(path) as run:
        watched, parent = await start(run), await start(run)
        sick, well = await park(run, ends(watched.id)), await park(run, ends(watched.id))
        child = await start(run, parent=parent.id)
        sick_child = await park(run, manual(), (await start(run, parent=parent.id)).id)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        damage = '{"kind":"flow"}' if column == "wait_json" else "{"
        database.executemany(f"UPDATE flows SET {column} = ? WHERE id = ?", [(damage, sick.id), (damage, sick_child.id)])  # noqa: S608
    async with running(path) as run:
        await run.manager.finish(watched.id)
        await run.manager.cancel(parent.id)
        assert await statuses(run, watched, well, parent, child) == [FINISHED, RUNNING, CANCELLED, CANCELLED]


async def test_the_outcome_of_a_refused_cancel_names_nobody() -> None:
    async with running() as run:
        parent, *_ = await family(run)
        await cancel(run, parent.id)
        again = await cancel(run, parent.id)
        assert isinstance(again.error, FlowError)
        assert not isinstance(again.error, WaitConflict)
        assert await buried(run) == []
