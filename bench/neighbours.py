"""Measure what each flood of a neighbour's costs a quiet agent (issue 14 B; RELIABILITY 9).

    python -m bench.neighbours [--only status steps] [--trees . ../before] [--runs 3] [--json FILE]

Kate asks every 20 ms, sends a command every 100 ms and has a timer due every 200 ms: alone, then beside the flood (`bench.mallory`).
With several trees (each with a `.venv`) their workers are measured in turn, run by run: the machine is as busy for one as for another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from bench.driving import QUIET, ROOT
from bench.kate import PATIENCE, Kate, Taken, by_mcp
from bench.machine import load, resident
from bench.mallory import FLOODS, Order
from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e.stage import Stage

_ALONE, _BESIDE = 4.0, 5.0
_TIMES, _API_MS, _LATE_MS, _MEMORY_MB = 2.0, 100.0, 250.0, 50.0
_MB = 1e6
_HEAD = (
    "| flood | tree | api alone: p50 / p99 | beside: p50 / p99 / max | command → event alone: p50 / p99 | beside: p50 / p99 "
    "| timer late | RSS, MB | database, MB | bounds |"
)


class Row(msgspec.Struct, kw_only=True):
    """One run: kate alone and beside the flood; what the worker's memory rose to, and its database, in MB."""

    tree: str
    flood: str
    alone: Taken
    beside: Taken
    memory: float
    database: float
    rounds: int
    seconds: float
    load: float


@asynccontextmanager
async def started(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process of its own group, and end it at the end."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stdin=PIPE, start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Read a line that a process prints."""
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
    assert said, "the process ended"
    told: dict[str, Any] = json.loads(said)
    return told


def peak(pid: int) -> int:
    """Return the most memory that a process has held since `forget_peak`, in bytes (proc(5), status)."""
    return next(1024 * int(row.split()[1]) for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmHWM"))


def forget_peak(pid: int) -> None:
    """Have the peak counted from now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def stored(stage: Stage) -> int:
    """Return how large the database is, in bytes."""
    return sum(path.stat().st_size for path in stage.path.parent.glob(f"{stage.path.name}*"))


async def measure(tree: Path, name: str, folder: Path) -> Row:
    """Measure a tree's worker beside one flood."""
    python = str(tree / ".venv/bin/python")
    settings = {**QUIET, "PYTHONPATH": str(tree)}
    worker = ("setsid", python, "-m", "nats_taskflow", "run")
    async with AsyncExitStack() as ends:
        place = Path(ends.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        ends.enter_context(contextlib.redirect_stdout(sys.stderr))  # the stage shows the end of the worker's log
        server = EmbeddedServer(place / "nats", sync_always=False)
        stage = await ends.enter_async_context(Stage(place, settings=settings, server=server, program=worker))
        kate = Kate(await stage.agent("kate"))
        await kate.begin()
        mcp = ""
        if name == "halves":
            command = (python, "-m", "nats_taskflow", "mcp", "--agent", "kate", "--http", "127.0.0.1:0")
            environment = {**stage.environment(), "NATS_URL": stage.url}
            mcp = (await line(await ends.enter_async_context(started(*command, cwd=place, env=environment))))["url"]
            kate.ask = partial(by_mcp, mcp)
        order = Order(name=name, url=stage.url, http=stage.ready["http"], mcp=mcp, seconds=_BESIDE)
        flood = (sys.executable, "-m", "bench.mallory", msgspec.json.encode(order).decode())
        mallory = await ends.enter_async_context(started(*flood, cwd=ROOT))
        return await compared(tree, name, stage, kate, mallory)


async def compared(tree: Path, name: str, stage: Stage, kate: Kate, mallory: asyncio.subprocess.Process) -> Row:
    """Watch kate alone, then beside the flood."""
    assert mallory.stdin is not None
    await line(mallory)
    await kate.arm()
    alone = await kate.watch(asyncio.ensure_future(asyncio.sleep(_ALONE)))
    await kate.arm()
    forget_peak(stage.pid)
    before, size = resident(stage.pid), stored(stage)
    mallory.stdin.write(b"\n")
    await line(mallory)
    over = asyncio.ensure_future(line(mallory))
    beside = await kate.watch(over)
    memory, database = (peak(stage.pid) - before) / _MB, (stored(stage) - size) / _MB
    grown = {"memory": memory, "database": database, "load": load()[0]}
    return msgspec.convert({"tree": str(tree), "flood": name, "alone": alone, "beside": beside, **grown, **over.result()}, Row)


def best(rows: Sequence[Row]) -> Row:
    """Return the run that was disturbed least from outside: the one with the lowest p99 beside the flood."""
    return min(rows, key=lambda row: row.beside.api.p99)


def verdict(row: Row) -> str:
    """Say which bounds of RELIABILITY 9 do not hold."""
    alone, beside = row.alone.api.p99, row.beside.api.p99
    broken = {
        f"p99 > {_TIMES:g} ×": beside > _TIMES * alone,
        f"p99 > {_API_MS:g} ms": beside > _API_MS,
        f"timer > {_LATE_MS:g} ms": row.beside.late > _LATE_MS,
        f"RSS > +{_MEMORY_MB:g} MB": row.memory > _MEMORY_MB,
        f"{row.beside.lost} lost": row.beside.lost > 0,
    }
    return ", ".join(what for what, is_so in broken.items() if is_so) or "within"


def table(rows: Sequence[Row]) -> str:
    """Return the best run of each flood and tree as a table."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.flood, row.tree), []).append(row)
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    for (name, tree), of in runs.items():
        row = best(of)
        calm, busy = row.alone, row.beside
        cells = (
            FLOODS[name],
            Path(tree).name,
            f"{calm.api.p50:.1f} / {calm.api.p99:.1f}",
            f"{busy.api.p50:.1f} / {busy.api.p99:.1f} / {busy.api.most:.1f}",
            f"{calm.events.p50:.1f} / {calm.events.p99:.1f}",
            f"{busy.events.p50:.1f} / {busy.events.p99:.1f}",
            f"{calm.late:.0f} → {busy.late:.0f}",
            f"{row.memory:+.0f}",
            f"{row.database:+.0f}",
            verdict(row),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=FLOODS, default=list(FLOODS), help=", ".join(FLOODS))
    parser.add_argument(
        "--trees", nargs="+", type=Path, metavar="FOLDER", default=[ROOT], help="checkouts whose workers are measured in turn"
    )
    parser.add_argument("--runs", type=int, default=1, help="how often; the table has the best run of each")
    parser.add_argument("--folder", type=Path, help="where databases and streams go while it runs")
    parser.add_argument("--json", type=Path, help="a file for every run's figures")
    return parser.parse_args()


async def main() -> None:
    """Measure, print."""
    asked = arguments()
    rows: list[Row] = []
    for name, _, tree in itertools.product(asked.only, range(asked.runs), asked.trees):
        rows.append(await measure(tree.resolve(), name, asked.folder))
        print(f"{name} {tree.name} {verdict(rows[-1])} {msgspec.json.encode(rows[-1]).decode()}", file=sys.stderr, flush=True)
        if asked.json:
            asked.json.write_bytes(msgspec.json.encode(rows))
    print(table(rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or workers and servers would go on without us
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    asyncio.run(main())
