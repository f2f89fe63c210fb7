"""The disk fails once, or from some moment on: what is in doubt is not acknowledged, and the worker ends; the next starts from disk."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e.stage import Stage
from tests.faults.house import FaultyStage, House
from tests.faults.report import Row
from tests.faults.test_kill_at_every_call import chosen
from tests.faults.tracing import logged, most_by_one_thread, require_strace, tracing
from tests.tiers import SIZE, Rotated, Tests

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("strace")]

CALLS = ("fdatasync", "pwrite64", "pread64", "ftruncate")
BROKEN, REFUSED = 74, 78
Record = Callable[[Row], None]


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


def misleading(stage: FaultyStage, call: str) -> list[str]:
    """Say what is wrong with the last words. SQLite itself calls it damage when a read fails with EIO."""
    words = last_words(stage)
    stopping = '"event":"worker.stopping"' in stage.logs()[0].read_text(encoding="utf-8")
    why = "could not be closed cleanly" in words if stopping else "start again to recover from disk" in words
    what = "I/O error" in words or (call == "pread64" and "malformed" in words)
    return [] if why and what else [f"it said {words!r}"]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for_ever"])
@pytest.mark.scenario("disk-error")
async def test_after_an_error_of_the_disk_the_worker_ends_with_74_and_the_next_one_finds_everything(
    house: House, dice: random.Random, rotated: Rotated, record: Record, *, lasting: bool
) -> None:
    counting, log = house.stage(), house.folder / "counted.log"
    counting.under = [tracing(log, *CALLS, only=files(counting))]
    assert await house.perform(counting) == []
    counts = {call: most_by_one_thread(log, call) for call in CALLS}
    row = Row(scenario="disk-error-for-ever" if lasting else "disk-error-once", seed=SEED, runs=0)
    wrong: dict[str, list[str]] = {}
    slowest = 0.0
    each = 60 if SIZE is Tests.NIGHTLY else 2
    for call, k in rotated([(call, k) for call, count in counts.items() for k in chosen(count, each, dice)], 4):
        stage, log = house.stage(), house.folder / "failed.log"
        stage.ends = frozenset({BROKEN})
        stage.under = [tracing(log, call, only=files(stage), inject=f"error=EIO:when={k}{'+' if lasting else ''}")]
        bad = await house.perform(stage, clean_logs=False)  # its last words are no record
        failures = [failed.at for failed in logged(log) if "(INJECTED)" in failed.text]
        if failures:
            row.faults += 1
            bad += [] if stage.codes == [BROKEN] else [f"the exit codes were {stage.codes}"]
            bad += misleading(stage, call) if stage.codes else []
            slowest = max(slowest, stage.ended_at - failures[0])
        if bad:
            wrong[f"{call} {k}"] = bad
        row.runs, row.acknowledged, row.back = row.runs + 1, row.acknowledged + house.published, [*row.back, *stage.recoveries]
    row.lost = len(wrong)
    row.note = f"of {counts}; ended at most {slowest:.1f} s after the error"
    record(row)
    assert wrong == {}
    assert row.faults >= int(row.runs * 0.8)
    assert slowest < 5
