"""The disk fails once, or from some moment on: what is in doubt is not acknowledged, the worker ends with 74, the next one starts from disk."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e.stage import Stage
from tests.faults.disk import mounted
from tests.faults.house import FaultyStage, House
from tests.faults.report import Row
from tests.faults.test_kill_at_every_call import chosen
from tests.faults.tracing import logged, most_by_one_thread, require_strace, tracing
from worker.bus.server import EmbeddedServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("strace")]

CALLS = ("fdatasync", "pwrite64", "pread64", "ftruncate")
BROKEN, REFUSED = 74, 78
Record = Callable[[Row], None]
Tier = Callable[[int, int], int]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    require_strace()
    async with House(tmp_path) as opened:
        yield opened


def files(stage: Stage) -> tuple[Path, ...]:
    """Return the files of the database."""
    return tuple(stage.path.with_name(stage.path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal"))


def last_words(stage: FaultyStage) -> str:
    """Return the line that says why the first worker ended; there is no traceback beside it."""
    text = stage.logs()[0].read_text(encoding="utf-8")
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("taskflow: ")]
    return line


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for_ever"])
@pytest.mark.scenario("disk-error")
async def test_after_an_error_of_the_disk_the_worker_ends_with_74_and_the_next_one_finds_everything(
    house: House, dice: random.Random, tier: Tier, record: Record, *, lasting: bool
) -> None:
    counting, log = house.stage(), house.folder / "counted.log"
    counting.under = [tracing(log, *CALLS, only=files(counting))]
    assert await house.perform(counting) == []
    counts = {call: most_by_one_thread(log, call) for call in CALLS}
    row = Row(scenario="disk-error-for-ever" if lasting else "disk-error-once", seed=SEED, runs=0)
    wrong: dict[str, list[str]] = {}
    slowest = 0.0
    for call, count in counts.items():
        for k in chosen(count, tier(3, 60), dice):
            stage, log = house.stage(), house.folder / "failed.log"
            stage.ends = frozenset({BROKEN})
            stage.under = [tracing(log, call, only=files(stage), inject=f"error=EIO:when={k}{'+' if lasting else ''}")]
            bad = await house.perform(stage)
            failures = [failed.at for failed in logged(log) if "(INJECTED)" in failed.text]
            if failures:
                row.faults += 1
                bad += [] if stage.codes == [BROKEN] else [f"the exit codes were {stage.codes}"]
                words = last_words(stage) if stage.codes else ""
                bad += [] if "I/O error" in words else [f"it said {words!r}"]
                slowest = max(slowest, stage.ended_at - failures[0])
            if bad:
                wrong[f"{call} {k}"] = bad
            row.runs, row.acknowledged, row.back = row.runs + 1, row.acknowledged + house.published, [*row.back, *stage.recoveries]
    row.lost = len(wrong)
    row.note = f"of {counts}; ended at most {slowest:.1f} s after the error"
    record(row)
    assert wrong == {}
    assert row.faults >= row.runs * 0.8
    assert slowest < 5
