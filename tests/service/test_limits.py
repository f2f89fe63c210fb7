"""Messages at their limits: how many flows, and how many bytes, one transaction moves for them (RELIABILITY 9: ≤ 50 ms of it)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from nats_taskflow.engine import batch as batches
from nats_taskflow.engine.deferral import Deferrals
from nats_taskflow.engine.follow_ups import AT_ONCE
from nats_taskflow.engine.payload_schema import accepts, schema_flaw
from nats_taskflow.engine.submission import Submission
from nats_taskflow.errors import Unavailable, WaitConflict
from nats_taskflow.flow import park as parks
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import AdvanceFlow, DelegateFlow, FinishFlow
from nats_taskflow.store.records import Batch, Loaded, Needs
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.wire.inbound import Identity
from tests.flows import arrives, buried, counted, did, ends, external, get, kinds, park, parking, refused, start
from tests.running import Running, running

CHECKING = Policy(accepts=accepts, schema_flaw=schema_flaw)
LARGE = {"x": "y" * 250_000}
WRITTEN = 6 * 1024 * 1024
"""Bytes of states and journal that a transaction may write: about 20 ms."""


class Transactions:
    """What each transaction wrote: flows, journal entries, bytes of both; and how many bytes of held replies it loaded."""

    def __init__(self, run: Running) -> None:
        self.flows: list[int] = []
        self.bytes: list[int] = []
        run.engine.listen(self._heard)

    def _heard(self, batch: Batch) -> None:
        self.flows.append(len(batch.flows))
        states = sum(len(msgspec.json.encode(write.flow.state_json)) for write in batch.flows)
        self.bytes.append(states + sum(len(msgspec.json.encode(event.payload)) for event in batch.events))

    def clear(self) -> None:
        self.flows.clear()
        self.bytes.clear()


@pytest.mark.parametrize("payload, number", [({"n": 1}, AT_ONCE + 50), (LARGE, 40)])
async def test_a_reply_to_many_flows_resumes_them_in_slices_and_has_one_outcome(payload: Any, number: int) -> None:
    """SEMANTICS R6: every flow that waits, each once; what weighs much goes to fewer at once."""
    async with running() as run:
        seen = Transactions(run)
        flows = [await park(run, external(mode="all")) for _ in range(number)]
        seen.clear()
        first, second = await asyncio.gather(arrives(run, "c", payload, event_id="e"), arrives(run, "c", payload, event_id="e"))
        assert (first.name, second.name) == ("resumed", "duplicate")
        assert max(seen.flows) <= AT_ONCE
        assert max(seen.bytes) <= WRITTEN
        assert {tuple(await kinds(run, flow.id)) for flow in flows} == {("created", "started", "waiting", "resumed")}
        assert await counted(run) == {"flows.running": number, "inbox.resumed": 1, "inbox.duplicate": 1}


async def test_the_slices_of_a_reply_go_on_when_it_is_delivered_again_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no outcome before all were told, so the broker delivers it again."""

    def never(deferrals: Deferrals) -> list[Submission]:
        deferrals.ready = False
        return []

    path = str(tmp_path / "flows.db")
    async with running(path) as run:
        flows = [(await park(run, external(mode="all"))).id for _ in range(AT_ONCE + 50)]
        monkeypatch.setattr(Deferrals, "take_ready", never)
        reply = asyncio.ensure_future(arrives(run, "c", 1, event_id="e", seq=7))
        committed = asyncio.Event()
        run.engine.listen(lambda _: committed.set())
        await committed.wait()
    monkeypatch.undo()
    with pytest.raises(Unavailable):
        await reply
    async with running(path) as run:
        assert (await counted(run))["flows.waiting"] == 50
        assert (await arrives(run, "c", 1, event_id="e", seq=7)).name == "resumed"
        assert {(await get(run, flow_id)).status for flow_id in flows} == {FlowStatus.RUNNING}


async def test_no_more_flows_than_one_reply_can_resume_may_wait_for_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parks, "MAX_WAITERS", 3)
    async with running() as run:
        for _ in range(3):
            await park(run, external(mode="all"))
        error = await refused(run, external(mode="all"))
        assert isinstance(error, WaitConflict)
        assert error.details["limit"] == 3


async def test_the_end_of_a_large_flow_resumes_fewer_watchers_at_once() -> None:
    async with running() as run:
        seen = Transactions(run)
        watched = await start(run)
        watchers = [(await park(run, ends(watched.id))).id for _ in range(30)]
        await did(run, AdvanceFlow(flow_id=watched.id, patch=LARGE))
        seen.clear()
        await did(run, FinishFlow(flow_id=watched.id))
        await run.waits.tick()
        assert max(seen.bytes) <= WRITTEN
        assert {(await get(run, watcher)).status for watcher in watchers} == {FlowStatus.RUNNING}


async def test_a_wait_looks_at_no_more_held_replies_at_once_than_it_should() -> None:
    """64 leaves with 100 held replies of 256 KiB each were 1.6 GB in one transaction; 500 that do not fit are as many dead letters.

    Every one is judged in the end, in order.
    """
    loads: list[int] = []
    counts: list[int] = []
    load = SqliteTransaction.load

    def counted_load(transaction: SqliteTransaction, *args: Any) -> Loaded:
        loaded = load(transaction, *args)
        held = [reply for line in loaded.world.replies.values() for reply in line]
        loads.append(sum(len(msgspec.json.encode(reply.payload)) for reply in held))
        counts.append(len(held))
        return loaded

    async with running(policy=CHECKING) as run:
        for number in range(140):
            run.clock.advance(seconds=1)
            await arrives(run, "c", LARGE if number < 39 else "small" if number < 139 else 7, event_id=f"e{number}")
        flow = await start(run)
        with patch.object(SqliteTransaction, "load", counted_load):
            parked = await did(run, parking(flow.id, external(accept={"type": "integer"})))
        assert (parked.status, parked.state_json["resume_event"]) == (FlowStatus.RUNNING, 7)
        assert max(loads) <= 3 * 1024 * 1024
        assert max(counts) <= 32
        assert len(await buried(run)) == 139
        assert await kinds(run, flow.id) == ["created", "started", "waiting", "resumed"]


@pytest.mark.parametrize("payload", ["small", LARGE])
async def test_however_many_waits_begin_at_once_each_finds_the_reply_that_was_there_before_it(payload: Any) -> None:
    async with running(policy=CHECKING) as run:
        flows = [await start(run) for _ in range(100)]
        for number in range(100):
            await arrives(run, f"c{number}", payload, event_id=f"e{number}")
        parked = await asyncio.gather(*[did(run, parking(flow.id, external(f"c{number}"))) for number, flow in enumerate(flows)])
        assert [flow.status for flow in parked] == [FlowStatus.RUNNING] * 100
        assert [await kinds(run, flow.id) for flow in flows] == [["created", "started", "waiting", "resumed"]] * 100


async def test_a_batch_of_costly_messages_is_cut_where_it_has_worked_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on in its order: 500 changes of a state of 17,000 keys took one transaction of 0.6 s."""
    async with running() as run:
        seen = Transactions(run)
        flows = [await start(run) for _ in range(4)]
        seen.clear()
        monkeypatch.setattr(batches, "_LONG", -1.0)  # every message is too much
        advances = [AdvanceFlow(flow_id=flow.id, patch={"n": n}) for n in range(3) for flow in flows]
        outcomes = await asyncio.gather(*[run.engine.submit(what) for what in advances])
        assert seen.flows == [1] * 12
        assert [outcome.flow.revision for outcome in outcomes if outcome.flow is not None] == [2] * 4 + [3] * 4 + [4] * 4
        monkeypatch.undo()
        seen.clear()
        await asyncio.gather(*[run.engine.submit(what) for what in advances])
        assert seen.flows == [4]


async def test_the_outcomes_of_many_small_changes_of_a_large_state_keep_it_once() -> None:
    """RELIABILITY 9: two hundred of them kept 48 MB until they were told, a copy of 240 KB each."""
    async with running() as run:
        flow = await start(run, state_json={"text": "x" * 240_000})
        seen = Transactions(run)
        advances = [AdvanceFlow(flow_id=flow.id, patch={"n": n}) for n in range(20)]
        outcomes = await asyncio.gather(*[run.engine.submit(what) for what in advances])
        told = [outcome.flow for outcome in outcomes if outcome.flow is not None]
        assert len(told) == 20
        assert sum("state_stored" in flow.__dict__ for flow in told) == len(seen.flows) < 10, "once for each transaction"


@contextlib.contextmanager
def weighed() -> Iterator[list[int]]:
    """Note how many bytes of states each load gives."""
    seen: list[int] = []
    real = SqliteTransaction.load

    def noted(self: SqliteTransaction, needs: Needs, now: int) -> Loaded:
        loaded = real(self, needs, now)
        seen.append(sum(len(msgspec.json.encode(flow.state_json)) for flow in loaded.world.flows.values()))
        return loaded

    with patch.object(SqliteTransaction, "load", noted):
        yield seen


async def test_a_transaction_takes_as_many_messages_as_it_can_load_the_flows_of(tmp_path: Path) -> None:
    """RELIABILITY 9: 500 messages of 75 bytes named 120 MB of flows. What is left is next, in its order."""
    async with running(str(tmp_path / "t.db")) as run:
        flows = [await start(run, state_json={"text": "x" * 240_000}) for _ in range(40)]
        commits: list[list[str]] = []
        run.engine.listen(lambda batch: commits.append([write.flow.id for write in batch.flows]))
        with weighed() as loads:
            advances = [AdvanceFlow(flow_id=flow.id, patch={"n": n}) for n in range(2) for flow in flows]
            outcomes = await asyncio.gather(*[run.engine.submit(what) for what in advances])
        assert all(outcome.name == "applied" for outcome in outcomes)
        assert [one for commit in commits for one in commit] == [flow.id for flow in flows] * 2
        assert max(loads) < 3 * 1024 * 1024
        assert max(map(len, commits)) > 1


async def test_agents_with_large_flows_delay_no_other_by_more_than_a_transaction(tmp_path: Path) -> None:
    async with running(str(tmp_path / "t.db")) as run:
        flows = [await start(run, state_json={"text": "x" * 240_000}) for _ in range(30)]
        hers = await start(run)
        commits: list[list[str]] = []
        run.engine.listen(lambda batch: commits.append([write.flow.id for write in batch.flows]))
        wanted = [("mallory", flow) for flow in flows] + [("kate", hers)]
        await asyncio.gather(
            *[
                run.engine.submit(AdvanceFlow(flow_id=flow.id, patch={"n": 1}), Identity(f"cmd:{agent}", flow.id, b""), source="S", seq=n)
                for n, (agent, flow) in enumerate(wanted, 1)
            ]
        )
        assert hers.id in commits[0]
        assert len(commits) > 3


async def test_no_commit_folds_more_than_some_megabytes_of_the_log_into_the_file(tmp_path: Path) -> None:
    """RELIABILITY 9: in a flood of large messages one commit in sixteen copied and synced 40 MB, and held the store as long."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        sizes = [path.stat().st_size]
        run.engine.listen(lambda _: sizes.append(path.stat().st_size))
        for _ in range(100):
            await start(run, state_json={"text": "x" * 240_000})
        folded = [after - before for before, after in itertools.pairwise(sizes) if after > before]
        assert len(folded) > 2, "a hundred flows and their journal take 50 MB"
        assert max(folded) < 12 * 1024 * 1024


async def test_large_flows_that_wait_for_another_to_end_are_moved_a_few_at_a_time(tmp_path: Path) -> None:
    async with running(str(tmp_path / "t.db")) as run:
        awaited = await start(run)
        flows = [await start(run, state_json={"text": "x" * 240_000}) for _ in range(20)]
        for flow in flows:
            await park(run, {"kind": "flow", "flow_id": awaited.id}, flow.id)
        commits: list[list[str]] = []
        run.engine.listen(lambda batch: commits.append([write.flow.id for write in batch.flows]))
        with weighed() as loads:
            await did(run, FinishFlow(flow_id=awaited.id))
            await run.waits.tick()
        assert sorted(itertools.chain(*commits)) == sorted([awaited.id, *(flow.id for flow in flows)])
        assert max(loads) < 3 * 1024 * 1024


async def test_a_message_with_everything_at_its_limit_moves_one_flow_in_few_transactions() -> None:
    """64 leaves four deep, a schema of 16 KB, a payload of 256 KiB and a state of 256 KiB."""

    def tree(leaves: list[int], depth: int) -> dict[str, Any]:
        parts = [external(f"c-{n}") for n in leaves] if depth == 3 else [tree(leaves[n::4], depth + 1) for n in range(4)]
        return {"kind": "all_of", "conditions": parts}

    async with running(policy=CHECKING) as run:
        seen = Transactions(run)
        nested, large, asking = await start(run), await start(run), await start(run)
        seen.clear()
        await park(run, tree(list(range(64)), 1), nested.id)
        await did(run, AdvanceFlow(flow_id=large.id, patch=LARGE))
        await did(run, AdvanceFlow(flow_id=large.id, patch={"b": 1}))
        more: dict[str, Any] = {"accept": {"enum": [0] * 8000}, "headers": {f"h{n}": "v" * 100 for n in range(50)}, "timeout": "1h"}
        await did(
            run, DelegateFlow(flow_id=asking.id, to="svc.x", payload=LARGE, reply_topic="t", correlation_id="d", cancel_to="svc.y", **more)
        )
        assert [flows for flows in seen.flows if flows] == [1, 1, 1, 1]
        assert len(seen.flows) == 5  # the schema was asked for first
        assert max(seen.bytes) <= WRITTEN
