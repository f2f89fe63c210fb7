"""One or all of several waiters of a pair (SEMANTICS R6), and where a reply goes otherwise (R2, R7)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nats_taskflow.errors import WaitConflict
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.stimuli import CancelFlow
from tests.flows import (
    BOB,
    KATE,
    TOPIC,
    all_of,
    any_of,
    arrives,
    buried,
    counted,
    external,
    get,
    kinds,
    manual,
    park,
    parking,
    refused,
    start,
)
from tests.running import running


@pytest.mark.parametrize("first, second", [("one", "one"), ("one", "all"), ("all", "one")])
async def test_the_modes_of_one_pair_do_not_mix_and_one_is_for_one(first: str, second: str) -> None:
    """SEMANTICS R6."""
    async with running() as run:
        holder = await park(run, external(mode=first))
        error = await refused(run, external(mode=second))
        assert isinstance(error, WaitConflict)
        assert error.details == {"topic": TOPIC, "correlation_id": "c", "flow_id": holder.id}


async def test_a_conflict_names_the_flow_that_waits_to_its_owner_only() -> None:
    """SEMANTICS R6: who waits for what is nobody else's business."""
    async with running() as run:
        await park(run, external(), owner=KATE)
        error = await refused(run, external(), owner=BOB)
        assert error.details == {"topic": TOPIC, "correlation_id": "c"}


async def test_a_leaf_of_a_composite_conflicts_like_a_wait_of_its_own() -> None:
    """SEMANTICS R6."""
    async with running() as run:
        await park(run, any_of(manual(), all_of(external("x"), external("y"))))
        for wait in (external("y"), any_of(external("z"), external("x"))):
            assert isinstance(await refused(run, wait), WaitConflict)


async def test_with_all_one_event_resumes_every_flow_that_waits_at_that_moment() -> None:
    """SEMANTICS R6, R14: and the message still has one outcome."""
    async with running() as run:
        flows = [await park(run, external(mode="all"), owner=owner) for owner in (KATE, BOB, KATE)]
        other = await park(run, external("other", mode="all"))
        assert (await arrives(run, "c", {"n": 1}, event_id="e")).name == "resumed"
        for flow in flows:
            after = await get(run, flow.id)
            assert (after.status, after.state_json["resume_event"]) == (FlowStatus.RUNNING, {"n": 1})
        assert (await get(run, other.id)).status is FlowStatus.WAITING
        late = await park(run, external(mode="all"))
        assert late.status is FlowStatus.WAITING, "it was used up: nothing is held for who comes later"
        assert await counted(run) == {"flows.running": 3, "flows.waiting": 2, "waits.external_event": 2, "inbox.resumed": 1}


async def test_a_held_reply_resumes_the_first_flow_that_parks_also_with_all() -> None:
    """SEMANTICS R4, R6: those that wait at that moment are the one that parks."""
    async with running() as run:
        await arrives(run, "c", 1)
        first, second = await park(run, external(mode="all")), await park(run, external(mode="all"))
        assert (first.status, second.status) == (FlowStatus.RUNNING, FlowStatus.WAITING)


async def test_with_all_the_outcome_is_the_strongest_of_what_the_reply_did() -> None:
    """SEMANTICS R6, R14."""
    async with running() as run:
        part = await park(run, all_of(external(mode="all"), manual()))
        assert (await arrives(run, "c", 1)).name == "progressed"
        whole = await park(run, external(mode="all"))
        going = await park(run, all_of(external(mode="all"), manual()))
        assert (await arrives(run, "c", 2)).name == "resumed"
        assert (await get(run, part.id)).progress == {"0": 1}, "its leaf was satisfied before and is closed"
        assert (await get(run, going.id)).progress == {"0": 2}
        assert (await get(run, whole.id)).status is FlowStatus.RUNNING


async def test_with_all_each_flow_has_its_own_deadline() -> None:
    """SEMANTICS R6, R9."""
    async with running() as run:
        short = await park(run, external(mode="all", timeout="1m", on_timeout="fail"))
        long = await park(run, external(mode="all", timeout="5m"))
        run.clock.advance(minutes=1)
        assert (await arrives(run, "c", 1)).name == "resumed"
        assert (await get(run, short.id)).status is FlowStatus.FAILED
        assert (await get(run, long.id)).state_json["resume_event"] == 1


async def test_with_all_a_flow_id_in_the_reply_resumes_that_flow_alone() -> None:
    """SEMANTICS R2, R6."""
    async with running() as run:
        one, two = await park(run, external(mode="all")), await park(run, external(mode="all"))
        assert (await arrives(run, "c", 1, flow_id=two.id)).name == "resumed"
        assert [(await get(run, flow.id)).status for flow in (one, two)] == [FlowStatus.WAITING, FlowStatus.RUNNING]


async def test_a_pair_is_free_again_once_its_wait_is_over() -> None:
    """SEMANTICS R6, R10: also within one batch."""
    async with running() as run:
        one, two = await park(run, external()), await start(run)
        submitted = [run.engine.submit(what) for what in (CancelFlow(flow_id=one.id), parking(two.id, external(mode="all")))]
        assert [outcome.error for outcome in await asyncio.gather(*submitted)] == [None, None]
        assert (await arrives(run, "c", 1)).name == "resumed"


async def test_two_flows_that_park_on_one_pair_at_once_do_not_both_get_it() -> None:
    """SEMANTICS R6: decided in order within a batch."""
    async with running() as run:
        flows = [await start(run) for _ in range(5)]
        outcomes = await asyncio.gather(*[run.engine.submit(parking(flow.id, external())) for flow in flows])
        assert [type(outcome.error) for outcome in outcomes] == [type(None), *[WaitConflict] * 4]


async def test_a_reply_that_names_another_flow_than_the_waiter_resumes_nothing() -> None:
    """SEMANTICS R2."""
    async with running() as run:
        flow, other = await park(run, external()), await start(run)
        assert (await arrives(run, "c", 1, flow_id=other.id)).name == "flow_mismatch"
        assert (await get(run, flow.id)).status is FlowStatus.WAITING
        assert [letter.reason for letter in await buried(run)] == ["flow_mismatch"]
        assert (await arrives(run, "c", 1, flow_id=flow.id)).name == "resumed"


async def test_a_match_is_byte_exact() -> None:
    """SEMANTICS R1."""
    async with running() as run:
        flow = await park(run, external("Order-7 "))
        for near in ("order-7 ", "Order-7", " Order-7 ", "Order-7  ", "Ｏrder-7 "):
            assert (await arrives(run, near, 1)).name == "held"
        assert (await arrives(run, "Order-7 ", 1, topic=TOPIC.upper())).name == "held"
        assert (await get(run, flow.id)).status is FlowStatus.WAITING
        assert (await arrives(run, "Order-7 ", 1)).name == "resumed"


async def test_a_reply_to_a_flow_whose_cancellation_was_requested_cancels_it_and_is_late() -> None:
    """SEMANTICS R7."""
    async with running() as run:
        flow = await park(run, external())
        await run.manager.request_cancel(flow.id)
        assert (await arrives(run, "c", 1)).name == "late"
        assert (await get(run, flow.id)).status is FlowStatus.CANCELLED


async def test_a_reply_to_a_running_flow_is_held_and_to_an_ended_one_is_late(tmp_path: Path) -> None:
    """SEMANTICS R7: also after a restart."""
    path = str(tmp_path / "flows.db")
    async with running(path) as run:
        flow = await park(run, external())
        await run.manager.resume(flow.id)
        assert (await arrives(run, "c", 1)).name == "held"
        await run.manager.fail(flow.id, "broke")
        assert (await arrives(run, "c", 2)).name == "late"
    async with running(path) as run:
        assert (await arrives(run, "c", 3)).name == "late"
        assert await kinds(run, flow.id) == ["created", "started", "waiting", "resumed", "failed"]
        assert await counted(run) == {"flows.failed": 1, "held": 1, "inbox.held": 1, "inbox.late": 2}
