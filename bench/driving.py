"""Run the load generator, and a worker with its broker, for the measurements."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from bench.load import Order
from bench.machine import cpu_seconds
from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e.stage import Stage

ROOT = Path(__file__).parents[1]
QUIET = {"TASKFLOW_LOG_LEVEL": "warning"}
_PATIENCE = 300.0


async def driven(order: Order) -> dict[str, Any]:
    """Run the load generator and return its figures; raises `RuntimeError` with what it said where it failed."""
    command = (sys.executable, "-m", "bench.load", msgspec.json.encode(order).decode())
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(_PATIENCE):
        out, err = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the load generator failed: {err.decode()[-500:]}")
    told: dict[str, Any] = json.loads(out)
    return told


async def measured(stage: Stage, order: Order) -> dict[str, Any]:
    """Run an order against a stage; adds what it cost the worker and the broker, in microseconds of CPU for each flow."""
    pids = {"worker_cpu_us": stage.pid, "broker_cpu_us": stage.server.pid or 0}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    told = await driven(order)
    cost = {name: 1e6 * (cpu_seconds(pid) - before[name]) / max(told["heard"], 1) for name, pid in pids.items()}
    return {**told, **cost}


@contextlib.asynccontextmanager
async def staged(folder: Path, database: Path | None = None, *, sync_always: bool = False) -> AsyncIterator[tuple[Stage, float]]:
    """Run a broker and a worker on a copy of a database; gives the stage and how many seconds the worker took to be ready."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        server = EmbeddedServer(place / "nats", sync_always=sync_always)
        stage = Stage(place, settings=QUIET, server=server)
        if database is not None:
            shutil.copyfile(database, stage.path)
            stage.path.chmod(0o600)
        await server.start()
        try:
            began = time.perf_counter()
            await stage.start()
            yield stage, time.perf_counter() - began
        finally:
            with contextlib.redirect_stdout(sys.stderr):  # it shows the end of the worker's log
                await stage.close()
