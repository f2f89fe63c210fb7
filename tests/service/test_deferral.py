"""What decisions ask about schemas is found out beside them: nobody waits for it but who must not overtake (SEMANTICS 3, 4)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.engine import payload_schema
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import Internal, Unavailable
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import AdvanceFlow, Caller, CancelFlow, ParkFlow, ResumeFlow
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from tests.eventually import eventually
from tests.flows import BOB, KATE, arrives, buried, did, external, get, kinds, park, parking, said, start
from tests.running import Running, running

NUMBER = {"type": "number"}


class Checks:
    """Checks payloads and schemas as the worker does, but not before `open` is set; `asked` on which threads, `running` when first."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.began = asyncio.Event()
        self.asked: list[str] = []
        self.defect: Exception | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def policy(self) -> Policy:
        return Policy(accepts=self.accepts, schema_flaw=self.schema_flaw)

    def accepts(self, schema: dict[str, Any], payload: Any) -> tuple[str, str] | None:
        self._wait()
        return payload_schema.accepts(schema, payload)

    def schema_flaw(self, schema: dict[str, Any]) -> str | None:
        self._wait()
        return payload_schema.schema_flaw(schema)

    def _wait(self) -> None:
        self.asked.append(threading.current_thread().name)
        self._loop.call_soon_threadsafe(self.began.set)
        self.open.wait()
        if self.defect is not None:
            raise self.defect


@contextlib.asynccontextmanager
async def checking(path: Path | str = ":memory:") -> AsyncIterator[tuple[Running, Checks]]:
    """Run an engine whose checks of schemas the test can hold up."""
    checks = Checks()
    async with running(str(path), policy=checks.policy) as run:
        try:
            yield run, checks
        finally:
            checks.open.set()  # a test that failed must not keep the thread


async def held_up(run: Running, checks: Checks, payload: Any = 1, **more: Any) -> asyncio.Future[SubmissionOutcome]:
    """Let a reply arrive whose check does not end before the test opens it."""
    checks.open.clear()
    checks.began.clear()
    reply = asyncio.ensure_future(arrives(run, "c", payload, **more))
    await checks.began.wait()
    return reply


async def test_nothing_of_a_schema_runs_in_a_transaction_or_on_the_event_loop() -> None:
    async with checking() as (run, checks):
        await park(run, external(accept=NUMBER))
        await arrives(run, "c", "x")
        await arrives(run, "c", 1)
        assert len(checks.asked) == 3
        assert {name.partition("_")[0] for name in checks.asked} == {"schemas"}


async def test_other_agents_go_on_while_a_payload_is_checked() -> None:
    async with checking() as (run, checks):
        flow, other = await park(run, external(accept=NUMBER)), await start(run, owner=BOB)
        reply = await held_up(run, checks)
        assert (await did(run, AdvanceFlow(flow_id=other.id, patch={"n": 1}))).state_json == {"n": 1}
        assert (await arrives(run, "another", 1)).name == "held"
        assert not reply.done()
        checks.open.set()
        assert (await reply).name == "resumed"
        assert await kinds(run, flow.id) == ["created", "started", "waiting", "resumed"]


async def test_a_schema_is_checked_beside_the_transaction_too() -> None:
    async with checking() as (run, checks):
        flow, other = await start(run), await start(run, owner=BOB)
        checks.open.clear()
        parked = asyncio.ensure_future(said(run, parking(flow.id, external(accept={"type": "objekt"})), command_id="w"))
        await checks.began.wait()
        await did(run, AdvanceFlow(flow_id=other.id, patch={"n": 1}))
        checks.open.set()
        error = (await parked).error
        assert error is not None
        assert (error.code, error.details["path"]) == ("invalid_request", "/wait_condition/accept")
        assert "objekt" in error.message


async def test_a_reply_that_is_too_much_work_is_dead_lettered_as_too_large_and_the_wait_goes_on() -> None:
    """SEMANTICS 3."""
    async with checking() as (run, _):
        flow = await park(run, external(accept={"items": {"anyOf": [{"const": n} for n in range(950)]}}))
        assert (await arrives(run, "c", [1] * 400)).name == "rejected"
        assert [letter.reason for letter in await buried(run)] == ["too_large"]
        assert (await get(run, flow.id)).status is FlowStatus.WAITING
        assert (await arrives(run, "c", [1] * 40)).name == "resumed"


async def test_a_held_reply_that_is_too_much_work_is_dead_lettered_at_the_parking() -> None:
    """SEMANTICS R4."""
    async with checking() as (run, _):
        await arrives(run, "c", [1] * 400)
        await arrives(run, "c", [1])
        flow = await park(run, external(accept={"items": {"anyOf": [{"const": n} for n in range(950)]}}))
        assert (flow.status, flow.state_json["resume_event"]) == (FlowStatus.RUNNING, [1])
        assert [letter.reason for letter in await buried(run)] == ["too_large"]


async def test_a_reply_and_the_wait_for_it_may_come_in_one_batch_in_either_order() -> None:
    """SEMANTICS R4, O4: the wait opens in the batch in which its early reply is decided, and what it accepts is known to nobody yet."""
    for early in (True, False):
        async with checking() as (run, _):
            flow = await start(run)
            wait = run.engine.submit(parking(flow.id, external(accept=NUMBER))) if not early else None
            reply = asyncio.ensure_future(arrives(run, "c", 7))
            await asyncio.sleep(0)
            wait = wait or run.engine.submit(parking(flow.id, external(accept=NUMBER)))
            assert (await wait).error is None
            assert (await reply).name in {"held", "resumed"}
            assert (await get(run, flow.id)).state_json["resume_event"] == 7
            assert await kinds(run, flow.id) == ["created", "started", "waiting", "resumed"]


async def _resumed(run: Running, flow_id: str) -> bool:
    return (await get(run, flow_id)).status is FlowStatus.RUNNING


@pytest.mark.parametrize("change", ["resumed", "parked anew", "cancelled"])
async def test_what_is_committed_during_the_check_counts(change: str) -> None:
    """SEMANTICS R8: a reply that was checked for one wait does not touch a newer one, nor a flow that waits no more."""
    async with checking() as (run, checks):
        flow = await park(run, external(accept=NUMBER))
        reply = await held_up(run, checks)
        await did(run, CancelFlow(flow_id=flow.id) if change == "cancelled" else ResumeFlow(flow_id=flow.id, reason="by hand"))
        anew = asyncio.ensure_future(park(run, external(accept={"type": "string"}), flow.id)) if change == "parked anew" else None
        checks.open.set()
        name = (await reply).name
        if anew is not None:
            assert (await anew).status is FlowStatus.WAITING
        assert (await get(run, flow.id)).state_json.get("resume_event") is None
        assert name == {"resumed": "held", "parked anew": name, "cancelled": "late"}[change]
        assert name in {"held", "rejected", "late"}


async def test_a_deadline_does_not_overtake_a_reply_that_is_checked() -> None:
    """SEMANTICS R9: it arrived at the broker before; the deadlines of other flows are on time."""
    async with checking() as (run, checks):
        flow = await park(run, external(accept=NUMBER, timeout="1m"))
        other = await park(run, external("another", timeout="1m"))
        reply = await held_up(run, checks)
        run.clock.advance(minutes=2)
        tick = asyncio.ensure_future(run.waits.tick())
        await eventually(partial(_resumed, run, other.id))
        assert (await get(run, flow.id)).status is FlowStatus.WAITING
        checks.open.set()
        assert (await reply).name == "resumed"
        assert (await tick).resumed == 1
        assert (await get(run, flow.id)).state_json["resume_event"] == 1


async def test_replies_to_one_flow_are_decided_in_their_order() -> None:
    """SEMANTICS O1: the second needs no check and must not win."""
    async with checking() as (run, checks):
        conditions = [external("c", accept=NUMBER), external("d")]
        flow = await park(run, {"kind": "any_of", "conditions": conditions})
        first = await held_up(run, checks)
        second = asyncio.ensure_future(arrives(run, "d", 2))
        other = await start(run, owner=BOB)
        checks.open.set()
        assert [(await first).name, (await second).name] == ["resumed", "held"]
        assert (await get(run, flow.id)).state_json["resume_event"] == {"0": 1}
        assert (await get(run, other.id)).status is FlowStatus.RUNNING


async def test_commands_of_one_agent_are_decided_in_their_order() -> None:
    """SEMANTICS O1: a `resume` that overtook its `wait` would be refused."""
    async with checking() as (run, checks):
        flow = await start(run)
        caller = Caller(actor="agent:kate", owner=KATE)
        checks.open.clear()
        wait = ParkFlow(flow_id=flow.id, condition=external(accept=NUMBER), nonce="n", caller=caller)
        told = [asyncio.ensure_future(said(run, wait, command_id="1"))]
        await checks.began.wait()
        told.append(asyncio.ensure_future(said(run, ResumeFlow(flow_id=flow.id, caller=caller), command_id="2")))
        told.append(asyncio.ensure_future(said(run, wait, command_id="1")))
        await did(run, AdvanceFlow(flow_id=(await start(run, owner=BOB)).id))
        checks.open.set()
        assert [(await outcome).name for outcome in told] == ["applied", "applied", "duplicate"]
        assert await kinds(run, flow.id) == ["created", "started", "waiting", "resumed"]


async def test_all_that_a_batch_asks_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one transaction after another for each reply of a flow, or for each of the replies that were held."""
    async with checking() as (run, _):
        conditions = [external(f"c-{n}", accept=NUMBER) for n in range(30)]
        flow = await park(run, {"kind": "all_of", "conditions": conditions})
        transactions = []
        transact = SqliteFlowStore.transact

        async def counted(store: SqliteFlowStore, work: Any) -> Any:
            transactions.append(work)
            return await transact(store, work)

        monkeypatch.setattr(SqliteFlowStore, "transact", counted)
        names = [outcome.name for outcome in await asyncio.gather(*[arrives(run, f"c-{n}", n) for n in range(30)])]
        assert names == ["progressed"] * 29 + ["resumed"]
        assert len(transactions) <= 2 + 30  # as each is found out; and never twice for one
        assert (await get(run, flow.id)).status is FlowStatus.RUNNING
        for n in range(30):
            await arrives(run, "held", "no number", event_id=f"e{n}")
        transactions.clear()
        assert (await park(run, external("held", accept=NUMBER))).status is FlowStatus.WAITING
        assert len(transactions) == 3  # its start; what it asks; the parking
        assert len(await buried(run)) == 30


async def test_a_defect_of_a_check_is_told_to_its_sender_alone(capsys: pytest.CaptureFixture[str]) -> None:
    async with checking() as (run, checks):
        flow = await park(run, external(accept=NUMBER))
        checks.defect = ZeroDivisionError()
        with pytest.raises(Internal):
            await arrives(run, "c", 1)
        checks.defect = None
        assert (await arrives(run, "c", 1)).name == "resumed"
        assert (await get(run, flow.id)).status is FlowStatus.RUNNING
        assert "ZeroDivisionError" in capsys.readouterr().out


async def test_a_stop_waits_for_no_check(tmp_path: Path) -> None:
    """The reply is delivered again to the next worker."""
    checks = Checks()
    async with running(str(tmp_path / "flows.db"), policy=checks.policy) as run:
        flow = await park(run, external(accept=NUMBER))
        reply = await held_up(run, checks, event_id="e")
    with pytest.raises(Unavailable):
        await reply
    checks.open.set()
    async with running(str(tmp_path / "flows.db"), policy=checks.policy) as run:
        assert (await arrives(run, "c", 1, event_id="e")).name == "resumed"
        assert (await get(run, flow.id)).status is FlowStatus.RUNNING
