"""Retention (SEMANTICS 2, R4, R5; I-24): what is deleted has served, and nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from nats_taskflow.bus.port import PublishFailed
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import Conflict, Unavailable
from nats_taskflow.flow.stimuli import StartFlow
from nats_taskflow.services.pruner import Pruner
from tests.eventually import eventually
from tests.running import Running, running
from tests.service.acting import Inlet, external, parked, started, timer

DAY = 86_400 * 1_000_000


def pruner(run: Running, first: int = 1, **more: Any) -> Pruner:
    async def first_kept() -> Mapping[str, int]:
        return {"TASKFLOW_IN": first}

    return Pruner(run.engine, first_kept, **{"retain_us": 30 * DAY, "ids_us": 60 * DAY, "inbox_us": 14 * DAY, **more})


async def publish_all(run: Running) -> None:
    """Say that every event so far is stored by the broker."""
    rows = await run.store.unpublished_events(0, 10_000)
    await run.engine.do(lambda transaction: transaction.mark_published("events", rows[-1].n))


async def tables(run: Running) -> dict[str, int]:
    names = ("flows", "flow_events", "flow_steps", "waiters", "inbox", "held", "dead_letters")
    return {name: (await run.store._read(f"SELECT count(*) FROM {name}", ()))[0][0] for name in names}  # noqa: S608 - our own names


async def test_only_flows_that_ended_long_ago_are_pruned_with_all_their_rows() -> None:
    """SEMANTICS 2."""
    async with running() as run:
        old, recent, waiting = await parked(run, external("a")), await started(run), await parked(run, external("b"))
        await run.manager.cancel(old.id)
        run.clock.advance(days=20)
        await run.manager.finish(recent.id)
        run.clock.advance(days=10, microseconds=1)
        await publish_all(run)
        assert (await pruner(run).prune())["flows"] == 1
        assert await run.manager.get(old.id) is None
        assert await run.manager.list_events(old.id, 10) == []
        assert {flow.id for flow in await run.manager.list_by_owner("owner")} == {recent.id, waiting.id}
        assert (await tables(run))["waiters"] == 1
        assert (await run.store.counts())["flows.cancelled"] == 0
        assert (await pruner(run).prune())["flows"] == 0


async def test_a_flow_with_an_unpublished_event_is_never_pruned() -> None:
    """I-24: the journal is also the outbox."""
    async with running() as run:
        flow = await started(run)
        await publish_all(run)
        await run.manager.finish(flow.id)
        run.clock.advance(days=60)
        assert (await pruner(run).prune())["flows"] == 0
        await publish_all(run)
        assert (await pruner(run).prune())["flows"] == 1


async def test_pruning_comes_in_small_batches_and_ends_everything_there_is() -> None:
    """SEMANTICS 2."""
    async with running() as run:
        for n in range(25):
            await run.manager.cancel((await parked(run, external(str(n)))).id)
        await publish_all(run)
        run.clock.advance(days=31)
        begins: list[str] = []
        await run.store._writer.set_trace_callback(begins.append)
        assert (await pruner(run, batch=10).prune())["flows"] == 25
        assert sum(statement.startswith("DELETE FROM flows ") for statement in begins) == 25
        assert sum(statement.startswith("BEGIN") for statement in begins) >= 4
        assert {name: count for name, count in (await tables(run)).items() if count} == {}


async def test_pruning_on_request_goes_on_until_nothing_is_left() -> None:
    """SEMANTICS 2: `prune_terminal_flows(older_than)`."""
    async with running() as run:
        flows = await asyncio.gather(*[started(run) for _ in range(450)])
        await asyncio.gather(*[run.manager.finish(flow.id) for flow in flows])
        await publish_all(run)
        assert await run.manager.prune_terminal_flows(run.clock.now) == 0
        assert await run.manager.prune_terminal_flows(run.clock.advance(microseconds=1)) == 450
        assert await run.manager.list_by_owner("owner") == []


async def test_the_inbox_remembers_as_long_as_the_stream_and_longer() -> None:
    """SEMANTICS R5 and I-24: both the stream's first sequence and the age have to agree."""
    async with running() as run:
        await parked(run, external("x", mode="all"))
        inlet = Inlet(run)
        for n in range(4):
            await parked(run, external(f"c{n}"))
            await inlet.reply({"n": n}, correlation_id=f"c{n}", event_id=f"e{n}")
        assert (await pruner(run, 4).prune())["inbox"] == 0, "forgotten by the stream, but young"
        run.clock.advance(days=14, microseconds=1)
        assert (await pruner(run, 1).prune())["inbox"] == 0, "old, but still in the stream"
        assert (await pruner(run, 4).prune())["inbox"] == 3
        assert await run.store.outcome("reply", "agent.delegate.reply\nc3\ne3") is not None
        assert (await run.store.counts())["inbox.resumed"] == 4, "the counters count messages, not rows"


async def test_the_id_of_a_pruned_flow_starts_no_other_as_long_as_its_events_are_kept() -> None:
    """SEMANTICS 6: the broker would take the new flow's events for the old one's, and drop them."""

    async def again() -> SubmissionOutcome:
        return await run.engine.submit(StartFlow(flow_id=old.id, controller_id="k", goal="g", owner_session_key="owner", minted=False))

    async with running() as run:
        old = await started(run)
        await run.manager.finish(old.id)
        await publish_all(run)
        run.clock.advance(days=30, microseconds=1)
        assert (await pruner(run).prune())["flows"] == 1
        assert isinstance((await again()).error, Conflict)
        run.clock.advance(days=30)
        assert (await pruner(run).prune())["ids"] == 1
        assert (await again()).name == "applied"


async def test_a_held_reply_keeps_its_row_until_it_is_decided() -> None:
    """SEMANTICS R4: its outcome is still to come."""
    async with running() as run:
        await Inlet(run).reply({"n": 1}, event_id="e1")
        run.clock.advance(hours=23)
        assert (await pruner(run, 100, inbox_us=0).prune()) == {"held": 0, "flows": 0, "ids": 0, "inbox": 0}
        run.clock.advance(hours=1)
        assert (await pruner(run, 100, inbox_us=0).prune()) == {"held": 1, "flows": 0, "ids": 0, "inbox": 1}


async def test_requests_on_api_are_forgotten_by_age() -> None:
    """SEMANTICS 6: they lie in no stream."""
    async with running() as run:
        await run.waits.resume_correlated("t", "c", {"n": 1}, event_id="e1")
        await parked(run, external("c", topic="t"))
        assert (await pruner(run).prune())["inbox"] == 0
        run.clock.advance(days=14, microseconds=1)
        assert (await pruner(run).prune())["inbox"] == 1


async def test_neither_an_outage_nor_a_defect_ends_the_pruner() -> None:
    """It tries again; the worker goes on meanwhile."""
    async with running() as run:
        asked: list[int] = []
        errors: list[Exception] = [PublishFailed("no answer"), Unavailable("full"), RuntimeError("a defect")]

        async def first_kept() -> Mapping[str, int]:
            asked.append(len(asked))
            if errors:
                raise errors.pop(0)
            return {}

        task = asyncio.create_task(Pruner(run.engine, first_kept, retain_us=DAY, ids_us=DAY, inbox_us=DAY, interval=0.001).run())
        await eventually(lambda: len(asked) >= 5)
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_timer_is_no_reason_to_keep_a_flow_that_ended() -> None:
    """SEMANTICS 2."""
    async with running() as run:
        flow = await parked(run, timer(run, days=10))
        await run.manager.cancel(flow.id)
        assert await run.store.next_due() is None
        await publish_all(run)
        run.clock.advance(days=31)
        assert (await pruner(run).prune())["flows"] == 1
