"""Waits that say what they accept: a reply that does not fit does not consume the wait (SEMANTICS R4, R14; issue 3, item 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nats_taskflow.engine.payload_schema import accepts, schema_flaw
from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from tests.flows import all_of, any_of, arrives, buried, counted, external, get, park, refused
from tests.running import running

CHECKING = Policy(accepts=accepts, schema_flaw=schema_flaw)
RESULT = {"type": "object", "properties": {"kind": {"const": "result"}}, "required": ["kind"]}


async def test_a_reply_that_does_not_fit_is_dead_lettered_and_the_wait_goes_on() -> None:
    """SEMANTICS R14: its one outcome is `rejected`."""
    async with running(policy=CHECKING) as run:
        flow = await park(run, external(accept=RESULT))
        assert (await arrives(run, "c", {"kind": "status"}, event_id="e1")).name == "rejected"
        letters = await buried(run)
        assert [(letter.reason, msgspec.json.decode(letter.body)) for letter in letters] == [("not_accepted", {"kind": "status"})]
        assert '"result" (at $.kind)' in letters[0].message
        assert (await get(run, flow.id)).revision == flow.revision
        assert (await arrives(run, "c", {"kind": "status"}, event_id="e1")).name == "duplicate"
        assert (await arrives(run, "c", {"kind": "result"}, event_id="e2")).name == "resumed"
        assert (await get(run, flow.id)).state_json["resume_event"] == {"kind": "result"}


async def test_a_held_reply_that_does_not_fit_is_spoiled_at_the_parking_and_the_next_one_taken() -> None:
    """SEMANTICS R4, R14: its outcome changes from `held` to `rejected`, and a repeat is told so."""
    async with running(policy=CHECKING) as run:
        for n, kind in enumerate(("status", "other", "result", "result")):
            run.clock.advance(seconds=1)
            await arrives(run, "c", {"kind": kind, "n": n}, event_id=f"e{n}")
        flow = await park(run, external(accept=RESULT))
        assert (flow.status, flow.state_json["resume_event"]) == (FlowStatus.RUNNING, {"kind": "result", "n": 2})
        assert await counted(run) == {"flows.running": 1, "held": 1, "inbox.held": 1, "inbox.rejected": 2, "inbox.resumed": 1}
        letters = [(letter.reason, letter.headers["Event-Id"], msgspec.json.decode(letter.body)["n"]) for letter in await buried(run)]
        assert letters == [("not_accepted", "e0", 0), ("not_accepted", "e1", 1)]
        repeat = await arrives(run, "c", {"kind": "status", "n": 0}, event_id="e0")
        assert (repeat.name, msgspec.json.decode(repeat.result)["outcome"]) == ("duplicate", "rejected")


async def test_held_replies_that_all_do_not_fit_leave_the_flow_waiting(tmp_path: Path) -> None:
    """SEMANTICS R4: durably."""
    path = str(tmp_path / "flows.db")
    async with running(path, policy=CHECKING) as run:
        await arrives(run, "c", "nothing of use")
        flow = await park(run, external(accept=RESULT))
        assert flow.status is FlowStatus.WAITING
    async with running(path, policy=CHECKING) as run:
        assert await counted(run) == {"flows.waiting": 1, "waits.external_event": 1, "inbox.rejected": 1}
        assert (await arrives(run, "c", {"kind": "result"})).name == "resumed"


@pytest.mark.parametrize(
    "schema, named", [({"pattern": "a"}, "'pattern'"), ({"properties": {"a": {"$ref": "#"}}}, "'$ref'"), ({"type": "objekt"}, "objekt")]
)
@pytest.mark.parametrize("deep", [False, True])
async def test_a_schema_that_cannot_be_used_is_refused_at_the_parking_by_name(schema: dict[str, Any], named: str, deep: bool) -> None:
    async with running(policy=CHECKING) as run:
        wait = external(accept=schema)
        error = await refused(run, any_of(wait) if deep else wait)
        assert isinstance(error, InvalidRequest)
        assert error.details["path"] == ("/wait_condition/conditions/0/accept" if deep else "/wait_condition/accept")
        assert named in error.message


async def test_each_leaf_accepts_what_it_says() -> None:
    """SEMANTICS R11."""
    async with running(policy=CHECKING) as run:
        flow = await park(run, all_of(external("a", accept=RESULT), external("b")))
        assert (await arrives(run, "a", 1)).name == "rejected"
        assert (await arrives(run, "b", 1)).name == "progressed"
        assert (await arrives(run, "a", {"kind": "result"})).name == "resumed"
        assert (await get(run, flow.id)).state_json["resume_event"] == {"0": {"kind": "result"}, "1": 1}


async def test_with_all_a_reply_resumes_those_that_accept_it() -> None:
    """SEMANTICS R6: and it is dead-lettered only where nobody does."""
    async with running(policy=CHECKING) as run:
        picky, easy = await park(run, external(mode="all", accept=RESULT)), await park(run, external(mode="all"))
        assert (await arrives(run, "c", 1)).name == "resumed"
        assert [(await get(run, flow.id)).status for flow in (picky, easy)] == [FlowStatus.WAITING, FlowStatus.RUNNING]
        assert await buried(run) == []
        assert (await arrives(run, "c", 1)).name == "rejected"


async def test_with_all_a_reply_that_one_does_not_accept_is_not_held_beside_it() -> None:
    """SEMANTICS R4, R6: the other one's time was up, so nobody takes the reply; held, it would lie beside an open matching wait."""
    async with running(policy=CHECKING) as run:
        picky = await park(run, external(mode="all", accept=RESULT))
        gone = await park(run, external(mode="all", timeout="1m"))
        run.clock.advance(minutes=2)
        assert (await arrives(run, "c", 1)).name == "rejected"
        assert [(await get(run, flow.id)).status for flow in (picky, gone)] == [FlowStatus.WAITING, FlowStatus.RUNNING]
        assert [letter.reason for letter in await buried(run)] == ["not_accepted"]


async def test_a_reply_without_a_payload_is_checked_as_null() -> None:
    """SEMANTICS R12."""
    async with running(policy=CHECKING) as run:
        await park(run, external("a", accept=RESULT))
        assert (await arrives(run, "a")).name == "rejected"
        await park(run, external("b", accept={"type": "null"}))
        assert (await arrives(run, "b")).name == "resumed"


async def test_a_cancel_request_wins_over_a_reply_that_does_not_fit() -> None:
    """SEMANTICS R7."""
    async with running(policy=CHECKING) as run:
        flow = await park(run, external(accept=RESULT))
        await run.manager.request_cancel(flow.id)
        assert (await arrives(run, "c", 1)).name == "late"
        assert (await get(run, flow.id)).status is FlowStatus.CANCELLED


async def test_a_worker_that_checks_nothing_refuses_accept() -> None:
    """Better than to wait for what is never looked at."""
    async with running() as run:
        assert isinstance(await refused(run, external(accept=RESULT)), InvalidRequest)
