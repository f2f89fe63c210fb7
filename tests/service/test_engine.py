"""The group commit (ARCHITECTURE 2): who shares a transaction, who pays for whose defect, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import AlreadyTerminal, FlowError, Internal, RevisionMismatch, StoreBroken, StoreLocked, Unavailable
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import AdvanceFlow, CancelFlow, FinishFlow, StartFlow
from nats_taskflow.store.port import LostRace, Transaction
from nats_taskflow.store.records import Batch
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.wire.inbound import Identity
from tests.eventually import eventually
from tests.running import Running, VirtualClock, an_input, running
from tests.service.acting import TOPIC, Inlet, external, journal, now, parked, started


class Statements:
    """What the writing connection is asked, as SQLite sees it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def starting(self, word: str) -> int:
        return sum(statement.startswith(word) for statement in self.seen)


@contextlib.asynccontextmanager
async def watched(run: Running) -> AsyncIterator[Statements]:
    found = Statements()
    await run.store._writer.set_trace_callback(found.seen.append)
    yield found
    await run.store._writer.set_trace_callback(None)  # type: ignore[arg-type]  # sqlite3 takes None to stop


def a_start(flow_id: str, *, minted: bool = True, **more: Any) -> StartFlow:
    return StartFlow(flow_id=flow_id, controller_id="c", goal="g", owner_session_key="o", minted=minted, **more)


def identity(key: str, digest: bytes = b"same") -> Identity:
    return Identity("cmd:kate", key, digest)


# who shares a transaction


async def test_what_queues_while_a_transaction_runs_shares_the_next_one() -> None:
    """ARCHITECTURE 2: one commit for many messages, however many there are."""
    async with running() as run, watched(run) as statements:
        outcomes = await asyncio.gather(*[run.engine.submit(a_start(f"f{n}")) for n in range(100)])
        assert {outcome.name for outcome in outcomes} == {"applied"}
        assert (statements.starting("BEGIN"), statements.starting("COMMIT")) == (1, 1)


async def test_a_batch_costs_the_same_number_of_statements_whatever_its_size() -> None:
    """ARCHITECTURE 2: rows are loaded by a few statements; only `executemany` repeats itself."""
    async with running() as run:
        flows = [await started(run) for _ in range(50)]
        async with watched(run) as one:
            await run.manager.update_state(flows[0].id, {"n": 1})
        async with watched(run) as many:
            await asyncio.gather(*[run.manager.update_state(flow.id, {"n": 2}) for flow in flows])
        assert many.starting("SELECT") == one.starting("SELECT")
        assert many.starting("BEGIN") == 1


async def test_a_batch_is_bounded() -> None:
    """ARCHITECTURE 2: up to `max_batch`."""
    store = await SqliteFlowStore.open(":memory:")
    engine = Engine(store, clock=VirtualClock(), policy=Policy(), max_batch=10)
    sizes: list[int] = []
    engine.listen(lambda batch: sizes.append(len(batch.flows)))
    futures = [engine.submit(a_start(f"f{n}")) for n in range(25)]
    committing = asyncio.create_task(engine.run())
    await asyncio.gather(*futures)
    assert sizes == [10, 10, 5]
    engine.close()
    await committing
    await store.close()


async def test_a_suspect_shares_its_transaction_with_no_other_message() -> None:
    """ARCHITECTURE 3: a message that may kill the process takes no other with it."""
    async with running() as run:
        sizes: list[int] = []
        run.engine.listen(lambda batch: sizes.append(len(batch.flows)))
        kinds = [False, False, True, False, True, True, False]
        await asyncio.gather(
            *[run.engine.submit(a_start(f"f{n}"), source="S", seq=n + 1, group=int(alone)) for n, alone in enumerate(kinds)]
        )
        assert sizes == [2, 1, 1, 1, 1, 1]


async def test_housekeeping_has_a_transaction_of_its_own() -> None:
    """ARCHITECTURE 2: it comes in its turn and neither joins a batch nor splits one."""
    async with running() as run, watched(run) as statements:

        def chore(transaction: Transaction) -> str:
            return "done"

        before, job = run.engine.submit(a_start("a")), run.engine.do(chore)
        after = run.engine.submit(a_start("b"))
        assert (await before).name == (await after).name == "applied"
        assert await job == "done"
        assert statements.starting("BEGIN") == 2


# a batch is decided in order


async def test_two_commands_on_one_flow_in_one_batch_are_both_carried_out() -> None:
    """SEMANTICS 2: inside one process mutations of one flow serialize, and both of two concurrent patches land."""
    async with running() as run:
        flow = await started(run)
        async with watched(run) as statements:
            await asyncio.gather(*[run.manager.update_state(flow.id, {f"k{n}": n}) for n in range(10)])
        assert statements.starting("BEGIN") == 1
        after = await now(run, flow)
        assert (after.revision, after.state_json) == (11, {f"k{n}": n for n in range(10)})
        assert [event.seq for event in await run.manager.list_events(flow.id, 100)] == list(range(1, 13))


async def test_a_whole_life_may_pass_in_one_batch() -> None:
    """ARCHITECTURE 2: the second stimulus sees what the first one did."""
    async with running() as run:
        first = run.engine.submit(a_start("f", minted=False))
        parking = asyncio.ensure_future(run.manager.set_waiting("f", external()))
        replying = asyncio.ensure_future(run.waits.resume_correlated(TOPIC, "c-1", {"n": 1}))
        finishing = asyncio.ensure_future(run.manager.finish("f"))
        late = asyncio.ensure_future(run.waits.resume_correlated(TOPIC, "c-1", {"n": 2}))
        flow = (await first).flow
        assert flow is not None
        assert (await parking).status is FlowStatus.WAITING
        assert (await replying).name == "resumed"
        assert (await finishing).status is FlowStatus.FINISHED
        assert (await late).name == "late"
        assert await journal(run, flow) == ["created", "started", "waiting", "resumed", "finished"]


async def test_a_pair_may_be_parked_on_replied_to_and_parked_on_again_in_one_batch(tmp_path: Path) -> None:
    """SEMANTICS R6: what counts is how the batch leaves the wait; after a restart as well."""
    path = str(tmp_path / "t.db")
    async with running(path) as run:
        first, second, inlet = await started(run), await started(run), Inlet(run)
        steps = [
            asyncio.ensure_future(run.manager.set_waiting(first.id, external())),
            asyncio.ensure_future(inlet.reply({"n": 1}, event_id="e1")),
            asyncio.ensure_future(run.manager.set_waiting(second.id, external())),
            asyncio.ensure_future(inlet.reply({"n": 2}, event_id="e2")),
            asyncio.ensure_future(run.manager.set_waiting(first.id, external())),
        ]
        await asyncio.gather(*steps)
        assert [(await now(run, one)).status.value for one in (first, second)] == ["waiting", "running"]
    async with running(path) as run:
        assert (await Inlet(run, stream="S2").reply({"n": 3})).name == "resumed"
        assert (await now(run, first)).state_json["resume_event"] == {"n": 3}
        open_waits = await run.store._read("SELECT count(*) FROM waiters WHERE open = 1", ())
        assert open_waits[0][0] == 0


async def test_duplicates_within_a_batch_are_told_the_first_ones_outcome() -> None:
    """SEMANTICS 6: byte for byte, and carried out once."""
    async with running() as run:
        futures = [run.engine.submit(a_start(f"f{n}"), identity("k"), source="S", seq=n + 1) for n in range(3)]
        other = run.engine.submit(a_start("x"), identity("k", b"other"), source="S", seq=9)
        outcomes = await asyncio.gather(*futures)
        assert [outcome.name for outcome in outcomes] == ["applied", "duplicate", "duplicate"]
        assert len({outcome.result for outcome in outcomes}) == 1
        assert (await other).name == "conflict"
        assert len(await run.manager.list_by_owner("o")) == 1


async def test_the_same_delivery_twice_in_a_batch_is_counted_once() -> None:
    """SEMANTICS R14: a redelivery is no message."""
    async with running() as run, watched(run) as statements:
        both = [run.engine.submit(a_start("f", minted=False), identity("k"), source="S", seq=7) for _ in range(2)]
        first, again = await asyncio.gather(*both)
        assert statements.starting("BEGIN") == 1
        assert (first.repeat, again.repeat, again.result) == (False, True, first.result)
        assert (await run.store.counts())["inbox.applied"] == 1


async def test_one_idempotency_key_starts_one_flow_in_one_batch_and_later() -> None:
    """SEMANTICS 6."""
    async with running() as run:
        starts = [run.engine.submit(a_start(f"f{n}", idempotency_key="key")) for n in range(3)]
        outcomes = [*(await asyncio.gather(*starts)), await run.engine.submit(a_start("f9", idempotency_key="key"))]
        assert {outcome.flow.id for outcome in outcomes if outcome.flow is not None} == {"f0"}


# who pays for whose refusal or defect


async def test_a_refusal_is_a_value_and_spoils_nothing() -> None:
    """ARCHITECTURE 2: no rollback, no second transaction."""
    async with running() as run:
        flows = [await started(run) for _ in range(5)]
        await run.manager.finish(flows[2].id)
        async with watched(run) as statements:
            outcomes = await asyncio.gather(*[run.engine.submit(FinishFlow(flow_id=flow.id)) for flow in flows])
        assert [outcome.name for outcome in outcomes] == ["applied", "applied", "rejected", "applied", "applied"]
        assert isinstance(outcomes[2].error, AlreadyTerminal)
        assert (statements.starting("BEGIN"), statements.starting("ROLLBACK")) == (1, 0)


async def test_a_constraint_violation_costs_only_the_one_that_causes_it() -> None:
    """ARCHITECTURE 2: the batch is tried again one by one."""
    async with running() as run:
        flow = await started(run)
        neighbours = [run.engine.submit(a_start(f"f{n}")) for n in range(3)]
        culprit = run.engine.submit(a_start(flow.id))  # says that the id is new, which the database denies
        neighbours += [run.engine.submit(a_start(f"g{n}")) for n in range(3)]
        with pytest.raises(Internal):
            await culprit
        assert {outcome.name for outcome in await asyncio.gather(*neighbours)} == {"applied"}
        assert (await now(run, flow)) == flow
        assert (await run.store.counts())["flows.running"] == 7


async def test_a_defect_costs_only_the_stimulus_that_has_it() -> None:
    """ARCHITECTURE 3: an unmapped error must not take the TaskGroup down."""
    async with running() as run:
        flow = await started(run)
        bad = run.engine.submit(AdvanceFlow(flow_id=flow.id, patch={"no": object()}))  # no JSON
        good = run.engine.submit(AdvanceFlow(flow_id=flow.id, patch={"yes": 1}))
        with pytest.raises(Internal):
            await bad
        assert (await good).name == "applied"
        assert (await now(run, flow)).state_json == {"yes": 1}


async def test_a_full_disk_fails_the_batch_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    """ARCHITECTURE 2 and 3: `Unavailable`; once there is room again everything goes on by itself."""
    async with running(str(tmp_path / "t.db")) as run:
        flow = await started(run)
        (pages,) = (await run.store._read("PRAGMA page_count", ()))[0]
        await run.store._writer.execute_fetchall(f"PRAGMA max_page_count = {pages}")
        big = {"big": "x" * 100_000}
        futures = [run.engine.submit(AdvanceFlow(flow_id=flow.id, patch=big)), run.engine.submit(a_start("f"))]
        refused = await asyncio.gather(*futures, return_exceptions=True)
        assert [(type(one), getattr(one, "details", None)) for one in refused] == [(Unavailable, {"full": True})] * 2
        assert (await now(run, flow)) == flow
        await run.store._writer.execute_fetchall("PRAGMA max_page_count = 1000000")
        assert (await run.engine.submit(AdvanceFlow(flow_id=flow.id, patch=big))).name == "applied"
        assert await run.manager.get("f") is None


async def test_a_lost_race_is_tried_again_and_then_is_a_revision_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEMANTICS 2: across processes, within a small budget."""
    async with running() as run:
        flow, save, lose = await started(run), SqliteTransaction.save, [3]

        def racing(self: SqliteTransaction, batch: Batch) -> None:
            if lose[0] > 0:
                lose[0] -= 1
                raise LostRace("a flow changed under the batch")
            save(self, batch)

        monkeypatch.setattr(SqliteTransaction, "save", racing)
        assert (await run.manager.update_state(flow.id, {"n": 1})).revision == 2
        lose[0] = 100
        with pytest.raises(RevisionMismatch):
            await run.manager.update_state(flow.id, {"n": 2})
        lose[0] = 0
        assert (await now(run, flow)).state_json == {"n": 1}


async def test_a_row_changed_by_somebody_else_is_never_overwritten(tmp_path: Path) -> None:
    """I-11: each revision is written once."""
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        flow = await started(run)
        load = SqliteTransaction.load

        def overtaken(self: SqliteTransaction, *what: Any) -> Any:
            loaded = load(self, *what)
            self._database.execute("UPDATE flows SET revision = revision + 1 WHERE id = ?", (flow.id,))
            return loaded

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SqliteTransaction, "load", overtaken)
            with pytest.raises(RevisionMismatch):
                await run.manager.update_state(flow.id, {"n": 1})
        assert (await now(run, flow)) == flow


async def test_what_a_listener_does_cannot_undo_or_repeat_a_commit() -> None:
    """The batch is stored when listeners hear of it: their defects are logged, not retried into a second change."""
    async with running() as run:
        flow = await started(run)

        def broken(_batch: Batch) -> None:
            raise RuntimeError("a listener's defect")

        run.engine.listen(broken)
        assert (await run.manager.update_state(flow.id, {"n": 1})).revision == 2
        assert (await now(run, flow)).revision == 2


# cancelled waiters, the end


async def test_a_waiter_that_gives_up_does_not_take_the_change_back() -> None:
    """ARCHITECTURE 3: cancelling an await does not cancel the SQL, and the others of the batch are told as usual."""
    async with running() as run:
        flow = await started(run)
        giving_up = asyncio.ensure_future(run.manager.update_state(flow.id, {"a": 1}))
        staying = asyncio.ensure_future(run.manager.update_state(flow.id, {"b": 1}))
        await asyncio.sleep(0)
        giving_up.cancel()
        assert (await staying).revision == 3
        assert (await now(run, flow)).state_json == {"a": 1, "b": 1}


async def test_an_engine_that_is_cancelled_finishes_its_transaction_first(tmp_path: Path) -> None:
    """ARCHITECTURE 3: otherwise a transaction stays open on the connection, and closing the store waits for ever."""
    for turns in range(40):
        path = str(tmp_path / f"{turns}.db")
        store = await SqliteFlowStore.open(path)
        engine = Engine(store, clock=VirtualClock(), policy=Policy())
        committing = asyncio.create_task(engine.run())
        submitted = engine.submit(a_start("f"))
        for _ in range(turns):
            await asyncio.sleep(0.0001 if turns % 2 else 0)
        committing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await committing
        told = submitted.done() and submitted.exception() is None
        async with asyncio.timeout(5):
            await store.close()
        again = await SqliteFlowStore.open(path)
        assert not again.recovered
        assert not told or (await again.get("f")) is not None
        await again.close()


async def test_what_is_queued_when_the_engine_is_cancelled_is_told_so() -> None:
    """Nobody is left waiting for a commit that will not come."""
    store = await SqliteFlowStore.open(":memory:")
    engine = Engine(store, clock=VirtualClock(), policy=Policy(), max_batch=1)
    futures = [engine.submit(a_start(f"f{n}")) for n in range(3)]
    committing = asyncio.create_task(engine.run())
    await asyncio.sleep(0)
    committing.cancel()
    results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
    assert isinstance(results[-1], Unavailable)
    assert all(isinstance(result, SubmissionOutcome | Unavailable) for result in results)
    with pytest.raises(asyncio.CancelledError):
        await committing
    await store.close()


async def test_closing_commits_what_is_queued_and_takes_nothing_more() -> None:
    """CONTRACT 7: finish what is in hand."""
    store = await SqliteFlowStore.open(":memory:")
    engine = Engine(store, clock=VirtualClock(), policy=Policy(), max_batch=2)
    futures = [engine.submit(a_start(f"f{n}")) for n in range(5)]
    committing = asyncio.create_task(engine.run())
    engine.close()
    with pytest.raises(Unavailable):
        await engine.submit(a_start("late"))
    await committing
    assert {outcome.name for outcome in await asyncio.gather(*futures)} == {"applied"}
    assert engine.queued == 0
    await store.close()


@contextlib.asynccontextmanager
async def breaking(error: FlowError | Exception) -> AsyncIterator[tuple[Engine, asyncio.Task[None]]]:
    """An engine whose commit after two that went well fails with `error`."""
    store = await SqliteFlowStore.open(":memory:")
    engine = Engine(store, clock=VirtualClock(), policy=Policy(), max_batch=4)
    commit, left = SqliteTransaction.commit, [2]

    def failing(self: SqliteTransaction) -> None:
        if left[0] == 0:
            raise error
        commit(self)
        left[0] -= 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SqliteTransaction, "commit", failing)
        committing = asyncio.create_task(engine.run())
        try:
            yield engine, committing
        finally:
            await store.close()


async def test_a_broken_store_stops_the_engine_and_fails_all_that_waits() -> None:
    """ARCHITECTURE 3: after an EIO on commit the state is unknown: nothing is tried again, exit 74."""
    async with breaking(StoreBroken("an I/O error")) as (engine, committing):
        futures = [engine.submit(a_start(f"f{n}")) for n in range(16)]
        results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
        assert [type(result) for result in results] == [SubmissionOutcome] * 8 + [StoreBroken] * 8
        with pytest.raises(StoreBroken) as broken:
            await committing
        assert broken.value.exit_code == 74
        with pytest.raises(StoreBroken):
            await engine.submit(a_start("later"))


async def test_a_store_that_breaks_while_a_spoiled_batch_is_tried_one_by_one_leaves_nobody_waiting() -> None:
    """ARCHITECTURE 3: the rest of that batch is in no queue any more."""
    async with breaking(StoreBroken("an I/O error")) as (engine, committing):
        assert (await engine.submit(a_start("f"))).name == "applied"
        futures = [engine.submit(a_start(name)) for name in ("f", "b", "c", "d")]  # `f` spoils the batch, `b` commits, `c` breaks
        results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
        assert [type(result) for result in results] == [Internal, SubmissionOutcome, StoreBroken, StoreBroken]
        with pytest.raises(StoreBroken):
            await committing


async def test_a_store_that_breaks_during_a_lost_race_stops_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """ARCHITECTURE 3: no error of the store is taken for a defect of the stimulus."""
    async with breaking(StoreBroken("an I/O error")) as (engine, committing):
        save, lose = SqliteTransaction.save, [1]
        await engine.submit(a_start("a"))
        await engine.submit(a_start("b"))

        def racing(self: SqliteTransaction, batch: Batch) -> None:
            if lose[0]:
                lose[0] -= 1
                raise LostRace("a flow changed under the batch")
            save(self, batch)

        monkeypatch.setattr(SqliteTransaction, "save", racing)
        with pytest.raises(StoreBroken):
            await engine.submit(a_start("c"))
        with pytest.raises(StoreBroken):
            await committing


async def test_a_worker_that_was_overtaken_cannot_commit(tmp_path: Path) -> None:
    """I-25: the epoch is compared inside every write transaction; exit 75."""
    path = tmp_path / "t.db"
    store = await SqliteFlowStore.open(str(path))
    engine = Engine(store, clock=VirtualClock(), policy=Policy())
    committing = asyncio.create_task(engine.run())
    await engine.submit(a_start("a"))
    newer = sqlite3.connect(path)
    newer.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
    newer.commit()
    with pytest.raises(StoreLocked, match="newer worker"):
        await engine.submit(a_start("b"))
    with pytest.raises(StoreLocked) as locked:
        await committing
    assert locked.value.exit_code == 75
    await store.close()
    assert newer.execute("SELECT id FROM flows").fetchall() == [("a",)]
    assert newer.execute("SELECT value FROM meta WHERE name = 'clean'").fetchone() == (0,), "the newer worker has not closed it"
    newer.close()


async def test_an_idle_engine_commits_a_single_message_at_once() -> None:
    """ARCHITECTURE 2: no timers, no added latency when idle."""
    async with running() as run, watched(run) as statements:
        await eventually(lambda: run.engine.queued == 0)
        for n in range(3):
            await run.manager.create_managed(an_input(goal=str(n)))
            assert statements.starting("COMMIT") == n + 1


async def test_repeats_of_a_batch_that_could_not_be_stored_are_no_duplicates() -> None:
    """SEMANTICS 6: what was told `Unavailable` was not kept, so the repeat is carried out."""
    async with running() as run:
        flow = await parked(run, {"kind": "manual"})
        with pytest.MonkeyPatch.context() as patched:

            def full(_: SqliteTransaction) -> None:
                raise Unavailable("the disk is full")

            patched.setattr(SqliteTransaction, "commit", full)
            with pytest.raises(Unavailable):
                await run.engine.submit(CancelFlow(flow_id=flow.id), identity("k"))
        outcome = await run.engine.submit(CancelFlow(flow_id=flow.id), identity("k"), source="S", seq=1)
        assert (outcome.name, outcome.repeat) == ("applied", False)
