"""Measure what a tick costs, in this process: a store with many timers, none or a hundred of them due."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from bench import waiting
from bench.figures import Figure
from tests.running import Running, running

_IDLE = 300


async def measure(folder: Path, sizes: tuple[int, ...]) -> list[Figure]:
    """Measure at each number of waiting timers."""
    figures = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            path = Path(name) / "flows.db"
            shutil.copyfile(await waiting.timers(folder / f"timers-{size}.db", size), path)
            async with running(str(path)) as run:
                idle, due = await _idle(run), await _due(run)
        base = f"tick.idle{sizes[0]}" if size != sizes[0] else ""
        figures += [
            Figure(id=f"tick.idle{size}", what=f"a tick, {size:,} timers wait, none due", value=idle, unit="ms", base=base),
            Figure(
                id=f"tick.due{size}",
                what=f"a tick, {size:,} timers wait, {waiting.DUE} due and resumed",
                value=due,
                unit="ms",
                base=base.replace("idle", "due"),
            ),
        ]
    return figures


async def _idle(run: Running) -> float:
    """Return the milliseconds of a tick with nothing due, the median of many."""
    took = []
    for _ in range(_IDLE):
        began = time.perf_counter()
        report = await run.waits.tick()
        took.append(time.perf_counter() - began)
        assert report.resumed == 0, report
    return 1000 * statistics.median(took)


async def _due(run: Running) -> float:
    """Return the milliseconds of a tick that resumes, the median of the rounds."""
    took = []
    for _ in range(waiting.ROUNDS):
        run.clock.advance(hours=1)
        began = time.perf_counter()
        report = await run.waits.tick()
        took.append(time.perf_counter() - began)
        assert report.resumed == waiting.DUE, report
    return 1000 * statistics.median(took)
