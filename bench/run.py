"""Measure, print a table, and write it with JSON and a plot to `bench/results/`: `make bench`, `make bench-peers`; see bench/README.md."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from bench import compared, endtoend, flood, floor, standing, ticks
from bench.figures import Figure, table, written
from bench.machine import facts, load
from bench.targets import TARGETS
from nats_taskflow.cli.runtime import SWITCH_INTERVAL

RESULTS = Path(__file__).parent / "results"
_SIZES, _FULL = (1_000, 100_000), (1_000, 100_000, 1_000_000)
_GIB = 2**30
_ROOM, _ROOM_FULL = 4 * _GIB, 25 * _GIB

Measure = Callable[[], Awaitable[list[Figure]]]


def measurements(folder: Path, sizes: tuple[int, ...], *, peers: bool) -> dict[str, Measure]:
    """Return what can be measured, by name."""
    everything: dict[str, Measure] = {
        "floor": lambda: floor.measure(folder),
        "endtoend": lambda: endtoend.measure(folder, sizes),
        "ticks": lambda: ticks.measure(folder, sizes),
        "standing": lambda: standing.measure(folder, sizes),
        "flood": lambda: flood.measure(folder),
        "naive": lambda: compared.naive(folder),
    }
    if peers:
        everything["endtoend"] = lambda: endtoend.saturated(folder, sizes[0], sync_always=False)
        for name in ("ticks", "standing", "flood"):
            del everything[name]
        for name in compared.PEERS:
            everything[name] = partial(compared.measure, folder, name)
        everything["again"] = lambda: endtoend.again(folder, sizes[0])
    return everything


async def measured(chosen: dict[str, Measure], told: dict[str, Any]) -> tuple[list[Figure], bool]:
    """Measure one after another; what fails is in the table, and fails the run at its end."""
    figures: list[Figure] = []
    failed = False
    for name, measure in chosen.items():
        began, busy = time.monotonic(), load()
        print(f"{name} … (load {busy[0]:g})", file=sys.stderr, flush=True)
        try:
            figures += await measure()
        except Exception as bad:  # noqa: BLE001  # the other figures are worth having
            traceback.print_exc()
            failed = True
            figures.append(Figure(id=f"failed.{name}", what=name, value=None, unit="", note=f"FAILED: {bad!r}"[:150]))
        told["sections"][name] = {"seconds": round(time.monotonic() - began, 1), "load_before": busy, "load_after": load()}
    return figures, failed


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also with 1,000,000 waiting flows: some 20 GB of disk, half an hour")
    parser.add_argument("--peers", action="store_true", help="measure the peers, and the worker at saturation beside them")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these parts; peers by their names")
    parser.add_argument("--folder", type=Path, help="where databases and streams go while it runs, on the disk to be measured")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    asked = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or workers and servers would go on without us
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    sys.setswitchinterval(SWITCH_INTERVAL)  # as the worker's own process: ticks and SQLite's rows are measured in this one
    sizes = _FULL if asked.full else _SIZES
    with tempfile.TemporaryDirectory(prefix="taskflow-bench-", dir=asked.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < (room := _ROOM_FULL if asked.full else _ROOM):
            print(f"bench: {folder} needs {room // _GIB} GiB of free disk; name another place with --folder", file=sys.stderr)
            return 1
        told = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **facts(folder), "sections": {}}
        chosen = measurements(folder, sizes, peers=asked.peers)
        if asked.only:
            chosen = {name: measure for name, measure in chosen.items() if name in asked.only}
        figures, failed = asyncio.run(measured(chosen, told))
    print(f"{told['cpu']}, {told['cores']} cores, load {told['load_at_start'][0]:g} → {load()[0]:g}, Python {told['python']}, ", end="")
    print(f"SQLite {told['sqlite']}, nats-server {told['nats-server']}, taskflow {told['taskflow']}\n")
    print(table(figures, TARGETS))
    busy = [f"{name} {part['load_before'][0]:g} → {part['load_after'][0]:g}" for name, part in told["sections"].items()]
    print("\nload while it was measured: " + " · ".join(busy))
    stem = ("peers" if asked.peers else "full" if asked.full else "bench") + ("-" + "-".join(asked.only) if asked.only else "")
    print("\n" + "\n".join(f"written: {path}" for path in written(RESULTS, stem, figures, TARGETS, told)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
