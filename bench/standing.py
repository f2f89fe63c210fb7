"""Measure what waiting flows cost a worker that stands: its memory, and how long it takes to be ready."""

from __future__ import annotations

from pathlib import Path

from bench import waiting
from bench.driving import measured, staged
from bench.figures import Figure
from bench.load import Order
from bench.machine import resident

_RESUMES = 10_000
"""Before memory is read: what a working worker holds, not a fresh one. Enough to fill SQLite's page cache (16 MiB) at every size."""
_BASE = 20_000
"""Memory for each flow is counted from here: a smaller database does not fill the cache."""


async def measure(folder: Path, sizes: tuple[int, ...]) -> list[Figure]:
    """Measure at each number of waiting flows; memory for each flow from a difference."""
    figures: list[Figure] = []
    held: dict[int, int] = {}
    for size in sorted({*sizes, _BASE}):
        needed = max(size, _RESUMES)
        database = await waiting.replies(folder / f"waiting-{needed}.db", needed)
        async with staged(folder, database) as (stage, ready):
            fresh = resident(stage.pid)
            await measured(stage, Order(url=stage.url, kind="resume", count=_RESUMES))
            held[size] = resident(stage.pid)
        base = f"standing.ready{sizes[0]}" if size != sizes[0] else ""
        name = f"{size:,} flows waiting"
        figures += [
            Figure(id=f"standing.ready{size}", what=f"start to ready, {name}", value=ready, unit="s", base=base),
            Figure(id=f"standing.fresh{size}", what=f"memory when ready, {name}", value=fresh / 2**20, unit="MiB"),
            Figure(id=f"standing.memory{size}", what=f"memory after {_RESUMES:,} resumes, {name}", value=held[size] / 2**20, unit="MiB"),
        ]
    each = (held[sizes[-1]] - held[_BASE]) / (sizes[-1] - _BASE)
    what = f"memory for each waiting flow, {_BASE:,} → {sizes[-1]:,}"
    return [*figures, Figure(id="standing.each", what=what, value=each, unit="B")]
