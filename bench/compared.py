"""Measure peers that do the same job, in the same run: a naive worker, faststream, taskiq, DBOS, LangGraph, Restate, Temporal.

Those with NATS get the same replies from the same load generator and make the same writes to the same database. Those with a broker of
their own park flows and resume them by their own means. A peer that cannot be had says why in the table, and the run goes on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nats
from msgspec.structs import replace
from nats.js.api import StreamConfig

from bench import waiting
from bench.driving import driven
from bench.figures import Figure
from bench.load import Order
from bench.machine import cpu_seconds
from nats_taskflow.bus.nats.server import EmbeddedServer

HERE = Path(__file__).parent / "peers"
VENV = Path(__file__).parent / ".venv-peers"
_RESTATE = "@restatedev/restate-server@1.7.12"
_WARM, _COUNT, _PACED = 100, 1500, 300
_NATS = {"faststream": "resume", "taskiq": "taskiq"}
_OWN = {"langgraph": (400, 200), "dbos": (400, 100), "restate": (3000, 500), "temporal": (200, 100)}
PEERS = (*_NATS, *_OWN)
_PATIENCE = 180.0
_BASE = "resumes.default"


async def naive(folder: Path) -> list[Figure]:
    """Measure the naive worker; it needs nothing that the product does not have."""
    return await _over_nats(folder, "naive", HERE / "naive.py", Path(sys.executable), "resume")


async def measure(folder: Path, name: str) -> list[Figure]:
    """Measure another one."""
    installed()
    python = VENV / "bin" / "python"
    if name in _NATS:
        return await _over_nats(folder, name, HERE / f"with_{name}.py", python, _NATS[name])
    return await _by_itself(folder, name, python, *_OWN[name])


def installed() -> None:
    """Make the peers' environment of what their lock pins; what cannot be had is missed where it is used."""
    python, lock = VENV / "bin" / "python", HERE / "requirements.txt"
    wanted = lock.read_text(encoding="utf-8")
    stamp = VENV / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--require-hashes", "--requirement", str(lock)], check=False, stdout=sys.stderr
    )
    subprocess.run([*pip, "check"], check=False, stdout=sys.stderr)
    if npm := shutil.which("npm"):
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(VENV / "npm"), _RESTATE]
        subprocess.run(command, check=False, stdout=sys.stderr)
    stamp.write_text(wanted, encoding="utf-8")


async def _over_nats(folder: Path, name: str, script: Path, python: Path, kind: str) -> list[Figure]:
    """Measure a peer that takes replies from JetStream and publishes events."""
    needed = _WARM + _COUNT + _PACED
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "flows.db"
        shutil.copyfile(await waiting.replies(folder / f"waiting-{needed}.db", needed), path)
        server = EmbeddedServer(Path(place) / "nats", sync_always=False)
        await server.start()
        try:
            client = await nats.connect(server.url)
            for stream, subject in (("BENCH_IN", "bench.reply"), ("BENCH_EVT", "bench.evt.>")):
                await client.jetstream().add_stream(StreamConfig(name=stream, subjects=[subject]))
            await client.close()
            told = await _driven(server.url, (str(python), str(script), server.url, str(path)), kind)
        finally:
            await server.stop()
    return _figures(name, told)


async def _driven(url: str, command: tuple[str, ...], kind: str) -> dict[str, Any]:
    """Start a peer, drive it, and end it."""
    process = await _started(command)
    if isinstance(process, str):
        return {"missing": process}
    try:
        assert process.stdout is not None
        if await asyncio.wait_for(process.stdout.readline(), 60) != b"ready\n":
            return {"missing": await _last_words(process)}
        order = Order(url=url, kind=kind, subject="bench.reply", listen="bench.evt.>", count=_WARM)
        await driven(order)
        before = cpu_seconds(process.pid)
        fast = await driven(replace(order, first=_WARM, count=_COUNT))
        cpu = 1e6 * (cpu_seconds(process.pid) - before) / max(fast["heard"], 1)
        slow = await driven(replace(order, first=_WARM + _COUNT, count=_PACED, rate=100))
        return {**fast, "p50": slow["p50"], "p99": slow["p99"], "pace": 100, "cpu": cpu}
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _by_itself(folder: Path, name: str, python: Path, count: int, paced: int) -> list[Figure]:
    """Measure a peer that brings its own world."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        process = await _started((str(python), str(HERE / f"with_{name}.py"), str(count), str(paced)), place)
        if isinstance(process, str):
            return _figures(name, {"missing": process})
        try:
            out, err = await asyncio.wait_for(process.communicate(), _PATIENCE)
        except TimeoutError:
            process.kill()
            await process.communicate()
            return _figures(name, {"missing": f"not done after {_PATIENCE:g} s"})
    lines = [line for line in out.decode().splitlines() if line.startswith("{")]
    return _figures(name, json.loads(lines[-1]) if lines else {"missing": _end(err)})


async def _started(command: tuple[str, ...], place: str | None = None) -> asyncio.subprocess.Process | str:
    """Start a peer's program; returns why not where it cannot be."""
    if not Path(command[0]).exists():
        return "its environment could not be made"
    return await asyncio.create_subprocess_exec(*command, cwd=place, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """Return why a peer ended."""
    _, err = await process.communicate()
    return _end(err)


def _end(err: bytes) -> str:
    """Return the last line of a log."""
    return (err.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:120]


def _figures(name: str, told: dict[str, Any]) -> list[Figure]:
    """Return a peer's figures, or that there are none."""
    what = f"{name}: resumes at saturation"
    if why := told.get("missing"):
        return [Figure(id=f"peers.{name}", what=what, value=None, unit="/s", note=f"not measured: {why}")]
    pace = f"{name}: {{}} at {told['pace']}/s"
    lost = "" if told.get("heard", told["count"]) == told["count"] else f"ONLY {told['heard']} OF {told['count']} CAME"
    cpu = (
        [Figure(id=f"peers.{name}.cpu", what=f"{name}: CPU each", value=told["cpu"], unit="µs", base=f"cpu.{_BASE}")]
        if "cpu" in told
        else []
    )
    return [
        Figure(id=f"peers.{name}", what=what, value=told["rate"], unit="/s", base=_BASE, note=lost),
        *[
            Figure(id=f"peers.{name}.{part}", what=pace.format(part), value=told[part], unit="ms", base=f"latency.default.at100.{part}")
            for part in ("p50", "p99")
        ],
        *cpu,
    ]
