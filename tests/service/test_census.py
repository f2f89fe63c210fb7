"""How many flows wait, for what and since when, is exact: after a restart, and whatever is committed while it is counted."""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import patch

import pytest

from nats_taskflow.errors import Unavailable
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.stimuli import CancelFlow, ResumeFlow
from nats_taskflow.observe import wait_counts as census_module
from nats_taskflow.observe.metrics import Metrics
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.observe.wait_counts import PER, WaitCounts
from nats_taskflow.store.admin_port import FOREVER, WaitCountsRange
from nats_taskflow.store.records import Batch
from nats_taskflow.units import Micros
from tests.running import Running, running
from tests.service.acting import external, parked, timer
from tests.service.test_rules_of_damage import damage


async def fresh(run: Running) -> WaitCounts:
    census = WaitCounts()
    await census.load(run.store)
    return census


class Acting:
    """Parks, resumes and cancels flows as chance has it."""

    def __init__(self, run: Running, seed: int) -> None:
        self._run = run
        self._random = random.Random(seed)
        self._waiting: list[Flow] = []

    async def some(self, number: int) -> None:
        for _ in range(number):
            self._run.clock.advance(seconds=self._random.choice([0, 0, 30, 600]))
            if self._waiting and self._random.random() < 0.35:
                flow = self._waiting.pop(self._random.randrange(len(self._waiting)))
                await self._run.engine.submit(self._random.choice([ResumeFlow, CancelFlow])(flow_id=flow.id))
            else:
                kind = self._random.choice([external(None), timer(self._run, days=9), {"kind": "manual"}])
                self._waiting.append(await parked(self._run, kind))


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_committed_while_it_is_counted_is_counted_once(seed: int) -> None:
    async with running() as run:
        recorder = MetricsRecorder(Metrics())
        run.engine.listen(recorder.count_batch)
        acting = Acting(run, seed)
        await acting.some(60)
        counted, stretches = run.store.waits_counted, 0

        async def disturbed(*, after: Micros, limit: int, per: Micros) -> WaitCountsRange:
            nonlocal stretches
            stretches += 1
            await acting.some(3 if stretches < 12 else 0)
            found = await counted(after=after, limit=limit, per=per)
            await acting.some(3 if stretches < 12 else 0)
            return found

        with patch.object(census_module, "_RANGE", 3), patch.object(run.store, "waits_counted", disturbed):
            await recorder.wait_counts.load(run.store)
        assert stretches > 3
        assert recorder.wait_counts._counts == (await fresh(run))._counts
        await acting.some(30)
        assert recorder.wait_counts._counts == (await fresh(run))._counts
        assert sum(recorder.wait_counts._counts.values()) == (await run.store.counts())["flows.waiting"]


async def test_a_commit_that_was_counted_before_it_was_heard_of_is_counted_once() -> None:
    async with running() as run:
        heard: list[Batch] = []
        run.engine.listen(heard.append)
        recorder = MetricsRecorder(Metrics())
        await parked(run, external())
        await recorder.wait_counts.load(run.store)
        for batch in heard:
            recorder.count_batch(batch)
        assert recorder.wait_counts._counts == (await fresh(run))._counts != {}


async def test_what_commits_did_is_kept_for_one_count_only_where_nothing_can_be_read() -> None:
    async with running() as run:
        recorder = MetricsRecorder(Metrics())
        run.engine.listen(recorder.count_batch)
        acting = Acting(run, 1)
        for _ in range(5):
            await acting.some(20)
            with patch.object(run.store, "waits_counted", side_effect=Unavailable("the disk is on fire")), pytest.raises(Unavailable):
                await recorder.wait_counts.load(run.store)
            assert len(recorder.wait_counts._changes) == 0
        await acting.some(20)
        assert 0 < len(recorder.wait_counts._changes) <= 20
        await recorder.wait_counts.load(run.store)
        await acting.some(20)
        assert recorder.wait_counts._counts == (await fresh(run))._counts


async def test_it_is_the_same_after_a_restart_and_says_since_when(tmp_path: Path) -> None:
    path = str(tmp_path / "t.db")
    async with running(path) as run:
        first = run.clock()
        await parked(run, external())
        run.clock.advance(days=2)
        await parked(run, external("c-2"))
        await parked(run, {"kind": "all_of", "conditions": [external("c-3"), timer(run, days=1)]})
    async with running(path) as run:
        waiting = (await fresh(run)).by_kind()
    assert {kind: count for kind, (count, _) in waiting.items()} == {"external_event": 2, "all_of": 1}
    assert 0 <= waiting["external_event"][1] - first <= PER


async def test_a_row_that_cannot_be_read_is_counted_under_no_kind(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    async with running(str(path)) as run:
        flow = await parked(run, external())
    damage(path, "wait_json", "'{'", flow.id)
    async with running(str(path)) as run:
        assert {kind: count for kind, (count, _) in (await fresh(run)).by_kind().items()} == {"": 1}


async def test_all_that_parked_at_one_time_is_one_stretch() -> None:
    async with running() as run:
        for n in range(7):
            await parked(run, external(f"c-{n}"))
        stretch = await run.store.waits_counted(after=-FOREVER, limit=3, per=PER)
        assert sum(stretch.counts.values()) == 7
        assert (await run.store.waits_counted(after=stretch.up_to, limit=3, per=PER)) == WaitCountsRange(
            up_to=FOREVER, last_event=stretch.last_event, counts={}
        )
