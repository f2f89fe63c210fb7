"""Measure the worker end to end: message published → change on disk → event received, by a load generator that speaks only the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bench import waiting
from bench.driving import measured, staged
from bench.figures import Figure
from bench.load import Order
from tests.e2e.stage import Stage

WARM = 1_000
SATURATED, STARTED, LIVED = 20_000, 10_000, 4_000
PACED = {100: 5.0, 1000: 4.0, 5000: 3.0}
"""Messages a second, and for how many seconds."""
SHARE = 4
"""Where the broker syncs each message, a run is this much shorter, and the fastest pace is left out: it would be saturation."""
_NEW = 10_000_000
"""Where the numbers of flows begin that a run starts by itself."""


async def measure(folder: Path, sizes: tuple[int, ...]) -> list[Figure]:
    """Measure at each number of waiting flows; latencies, payloads, starts and lives at the smallest."""
    figures: list[Figure] = []
    for sync in (False, True):
        figures += await _smallest(folder, sizes[0], sync_always=sync)
    for size in sizes[1:]:
        figures += await _larger(folder, size)
    return figures


async def saturated(folder: Path, waiting_flows: int, *, sync_always: bool) -> list[Figure]:
    """Measure the rate at saturation and the latencies at a pace alone: what peers are compared with."""
    return await _smallest(folder, waiting_flows, sync_always=sync_always, paces={100: 5.0}, everything=False)


async def again(folder: Path, waiting_flows: int) -> list[Figure]:
    """Measure the rate once more, after the peers: how far the machine has drifted meanwhile."""
    figures = await saturated(folder, waiting_flows, sync_always=False)
    rate = next(figure for figure in figures if figure.id == "resumes.default")
    return [replace(rate, id="resumes.again", what="resumes at saturation once more, after the peers", base="resumes.default")]


async def _smallest(
    folder: Path, waiting_flows: int, *, sync_always: bool, paces: dict[int, float] | None = None, everything: bool = True
) -> list[Figure]:
    """Measure everything at one number of waiting flows: the number that still waits at the end."""
    sync, share = ("always", SHARE) if sync_always else ("default", 1)
    if paces is None:
        paces = dict(list(PACED.items())[: 2 if sync_always else 3])
    saturated, big = SATURATED // share, SATURATED // share // 2
    needed = waiting_flows + WARM + saturated + (big if everything else 0) + sum(int(rate * seconds) for rate, seconds in paces.items())
    database = await waiting.replies(folder / f"waiting-{needed}.db", needed)
    figures = []
    async with staged(folder, database, sync_always=sync_always) as (stage, _):
        await measured(stage, Order(url=stage.url, kind="resume", count=WARM))
        at = WARM
        for rate, seconds in paces.items():
            count = int(rate * seconds)
            told = await measured(stage, Order(url=stage.url, kind="resume", first=at, count=count, rate=rate))
            at += count
            figures += _latencies(told, f"{sync}.at{rate}", f"resumes at {rate:,}/s, sync {sync}")
        told = await measured(stage, Order(url=stage.url, kind="resume", first=at, count=saturated))
        figures += _rate(told, f"resumes.{sync}", f"resumes at saturation, sync {sync}, 300 B", base="floor.sqlite.batched")
        if everything:
            large = Order(url=stage.url, kind="resume", first=at + saturated, count=big, size=3000)
            figures += _rate(await measured(stage, large), f"resumes.{sync}.3kb", f"resumes, sync {sync}, 3 KB", base=f"resumes.{sync}")
            figures += await _own(stage, sync, share)
    return figures


async def _own(stage: Stage, sync: str, share: int) -> list[Figure]:
    """Measure flows that the run starts by itself."""
    starts = Order(url=stage.url, kind="start", first=_NEW, count=STARTED // share, listen="taskflow.evt.*.*.started")
    told = await measured(stage, starts)
    lives = Order(url=stage.url, kind="life", first=2 * _NEW, count=LIVED // share, listen="taskflow.evt.*.*.finished", window=250)
    what = f"whole lives (start, wait, reply, finish), sync {sync}"
    return [
        *_rate(told, f"starts.{sync}", f"starts, sync {sync}", base="floor.sqlite.batched"),
        *_rate(await measured(stage, lives), f"lives.{sync}", what, base=f"resumes.{sync}"),
    ]


async def _larger(folder: Path, waiting_flows: int) -> list[Figure]:
    """Measure the rate and the latency with more flows waiting."""
    paced = 500
    needed = waiting_flows + WARM + SATURATED + paced
    database = await waiting.replies(folder / f"waiting-{needed}.db", needed)
    async with staged(folder, database) as (stage, _):
        await measured(stage, Order(url=stage.url, kind="resume", count=WARM))
        slow = await measured(stage, Order(url=stage.url, kind="resume", first=WARM, count=paced, rate=100))
        fast = await measured(stage, Order(url=stage.url, kind="resume", first=WARM + paced, count=SATURATED))
    name = f"{waiting_flows:,}"
    return [
        *_rate(fast, f"resumes.waiting{waiting_flows}", f"resumes at saturation, {name} flows waiting", base="resumes.default"),
        *_latencies(slow, f"waiting{waiting_flows}.at100", f"resumes at 100/s, {name} flows waiting"),
    ]


def _rate(told: dict[str, Any], name: str, what: str, *, base: str) -> list[Figure]:
    """Return a rate, and what it cost the worker."""
    note = _lost(told) or f"load generator {told['load_cpu_us']:.0f} µs, broker {told['broker_cpu_us']:.0f} µs CPU each"
    return [
        Figure(id=name, what=what, value=told["rate"], unit="/s", base=base, note=note),
        Figure(id=f"cpu.{name}", what=f"worker CPU each: {what}", value=told["worker_cpu_us"], unit="µs"),
    ]


def _latencies(told: dict[str, Any], name: str, what: str) -> list[Figure]:
    """Return the latencies of a paced run."""
    note = _lost(told)
    return [
        Figure(id=f"latency.{name}.{part}", what=f"{part} of {what}", value=told[part], unit="ms", base="floor.fsync_ms", note=note)
        for part in ("p50", "p99")
    ]


def _lost(told: dict[str, Any]) -> str:
    """Say what never came."""
    return "" if told["heard"] == told["count"] else f"ONLY {told['heard']:,} OF {told['count']:,} CAME"
