"""What follows from the end of a flow comes in slices: no family and no crowd of watchers holds up other agents (SEMANTICS 2)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.engine.follow_ups import AT_ONCE
from nats_taskflow.engine.id_mint import new_id
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.stimuli import CancelFlow, FinishFlow, StartFlow
from nats_taskflow.store.records import Batch
from tests.e2e.checks import of_database
from tests.flows import BOB, cancel, counted, did, ends, get, outcome_of, park, said, start
from tests.running import Running, running

MANY = 2 * AT_ONCE + 50
OWNER = "agent:kate:session:main"


async def children_of(run: Running, parent: Flow, number: int) -> list[str]:
    """Start children."""
    new = [
        StartFlow(flow_id=new_id(), controller_id="k", goal="g", owner_session_key=OWNER, parent_flow_id=parent.id) for _ in range(number)
    ]
    await asyncio.gather(*[did(run, one) for one in new])
    return [one.flow_id for one in new]


class Commits:
    """How many flows each transaction changed."""

    def __init__(self, run: Running) -> None:
        self.flows: list[int] = []
        run.engine.listen(self._heard)

    def _heard(self, batch: Batch) -> None:
        self.flows.append(len(batch.flows))


async def statuses(run: Running, flow_ids: list[str]) -> set[FlowStatus]:
    return {(await get(run, flow_id)).status for flow_id in flow_ids}


@contextlib.asynccontextmanager
async def counting(path: Path) -> AsyncIterator[tuple[Running, Commits]]:
    async with running(str(path)) as run:
        yield run, Commits(run)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


def check(path: Path) -> None:
    """Look whether what is promised holds; nothing was published here."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert of_database(database, "I-7", "I-8", "I-9", "I-11", "I-12", "I-13", "I-17") == []
        assert database.execute("SELECT count(*) FROM ends").fetchone() == (0,)


async def test_a_large_family_is_cancelled_in_slices_and_the_outcome_is_of_bounded_size(path: Path) -> None:
    async with counting(path) as (run, commits):
        parent = await start(run)
        children = await children_of(run, parent, MANY)
        commits.flows.clear()
        outcome = await said(run, CancelFlow(flow_id=parent.id, reason="enough"), command_id="x")
        told = outcome_of(outcome)["cancelled_children"]
        assert told == {"done": AT_ONCE, "pending": MANY - AT_ONCE, "ids": children[:100]}
        assert (await counted(run))["flows.running"] == MANY - AT_ONCE
        await run.waits.tick()
        assert commits.flows[0] == AT_ONCE + 1
        assert max(commits.flows[1:]) <= AT_ONCE
        assert await counted(run) == {"flows.cancelled": MANY + 1, "inbox.applied": 1}
        last = (await run.manager.list_events(children[-1], 10))[-1]
        assert (last.actor, last.payload["reason"]) == ("worker", f"parent flow {parent.id} was cancelled")
        assert (await said(run, CancelFlow(flow_id=parent.id, reason="enough"), command_id="x")).result == outcome.result
    check(path)


async def test_descendants_of_every_generation_are_reached(path: Path) -> None:
    """A chain of families, each larger than what one transaction moves."""
    async with counting(path) as (run, commits):
        root = await start(run)
        first = await children_of(run, root, AT_ONCE + 20)
        second = [child for n in (0, -1) for child in await children_of(run, await get(run, first[n]), AT_ONCE // 2 + 30)]
        third = await children_of(run, await get(run, second[-1]), 5)
        spared = await start(run)
        commits.flows.clear()
        await cancel(run, root.id)
        await run.waits.tick()
        assert max(commits.flows) <= AT_ONCE + 1
        assert await statuses(run, [*first, *second, *third]) == {FlowStatus.CANCELLED}
        assert (await get(run, spared.id)).status is FlowStatus.RUNNING
    check(path)


async def test_of_a_chain_longer_than_a_slice_at_least_the_next_one_is_told_to_be_pending(path: Path) -> None:
    async with counting(path) as (run, _):
        chain = [(await start(run)).id]
        for _ in range(AT_ONCE + 20):
            chain += await children_of(run, await get(run, chain[-1]), 1)
        told = outcome_of(await cancel(run, chain[0]))["cancelled_children"]
        assert told["done"] == AT_ONCE
        assert 1 <= told["pending"] <= 20
        await run.waits.tick()
        assert await statuses(run, chain) == {FlowStatus.CANCELLED}
    check(path)


async def test_a_family_that_fits_is_cancelled_in_one_transaction_and_leaves_nothing_to_do(path: Path) -> None:
    async with counting(path) as (run, commits):
        parent = await start(run)
        await children_of(run, parent, AT_ONCE)
        commits.flows.clear()
        told = outcome_of(await cancel(run, parent.id))["cancelled_children"]
        assert (told["done"], told["pending"], len(told["ids"])) == (AT_ONCE, 0, 100)
        assert (await run.store.due(run.clock.us, 10)).ends == []
        assert commits.flows == [AT_ONCE + 1]
    check(path)


async def test_the_slices_go_on_after_a_restart(path: Path) -> None:
    """What is left to do was stored with what is done."""
    async with counting(path) as (run, _):
        parent = await start(run)
        children = await children_of(run, parent, MANY)
        await cancel(run, parent.id)
    async with counting(path) as (run, _):
        await run.waits.tick()
        assert await statuses(run, children) == {FlowStatus.CANCELLED}
    check(path)


async def test_others_are_served_between_the_slices(path: Path) -> None:
    async with counting(path) as (run, commits):
        parent, other = await start(run), await start(run, owner=BOB)
        await children_of(run, parent, 4 * AT_ONCE)
        commits.flows.clear()
        await cancel(run, parent.id)
        tick = asyncio.ensure_future(run.waits.tick())
        await did(run, FinishFlow(flow_id=other.id))
        assert (await counted(run))["flows.running"] >= 2 * AT_ONCE
        await tick
    check(path)


@pytest.mark.parametrize("end", ["finish", "cancel"])
async def test_a_crowd_of_watchers_is_resumed_in_slices(path: Path, end: str) -> None:
    async with counting(path) as (run, commits):
        watched = await start(run)
        watchers = [(await park(run, ends(watched.id))).id for _ in range(AT_ONCE + 30)]
        commits.flows.clear()
        await did(run, FinishFlow(flow_id=watched.id) if end == "finish" else CancelFlow(flow_id=watched.id))
        late = await park(run, ends(watched.id))
        await run.waits.tick()
        assert max(commits.flows) <= AT_ONCE + 1
        assert await statuses(run, [*watchers, late.id]) == {FlowStatus.RUNNING}
    check(path)


async def test_an_ended_flow_is_not_pruned_before_its_followers_are_told(path: Path) -> None:
    async with counting(path) as (run, _):
        parent = await start(run)
        children = await children_of(run, parent, AT_ONCE + 1)
        await cancel(run, parent.id)
        await run.engine.do(lambda transaction: transaction.mark_published("events", 10_000))
        run.clock.advance(hours=1)
        assert await run.manager.prune_terminal_flows(run.clock.now) == AT_ONCE
        assert await run.manager.get(parent.id) is not None
        await run.waits.tick()
        run.clock.advance(hours=1)
        assert await run.manager.prune_terminal_flows(run.clock.now) == 2
        assert [await run.manager.get(flow_id) for flow_id in (parent.id, children[-1])] == [None, None]


async def test_a_damaged_follower_does_not_keep_the_slices_from_their_end(path: Path) -> None:
    """SEMANTICS R13."""
    async with counting(path) as (run, _):
        parent = await start(run)
        children = await children_of(run, parent, AT_ONCE + 30)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        damaged: list[Any] = [(child,) for child in children[:AT_ONCE]]
        database.executemany("UPDATE flows SET state_json = '{' WHERE id = ?", damaged)
    async with counting(path) as (run, _):
        await cancel(run, parent.id)
        await asyncio.wait_for(run.waits.tick(), 20)
        assert await statuses(run, children[AT_ONCE:]) == {FlowStatus.CANCELLED}
        assert (await run.store.due(run.clock.us, 10)).ends == []
