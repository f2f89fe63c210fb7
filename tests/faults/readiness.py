"""Ask a worker how it is, and for how much memory it takes."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.e2e.stage import Stage
from tests.eventually import eventually


async def readiness(stage: Stage) -> tuple[int, str]:
    """Return the status of `/readyz` and every check's line."""
    return await asyncio.to_thread(_fetched, f"{stage.ready['http']}/readyz?verbose")


async def unready(stage: Stage, *words: str, within: float = 10.0) -> float:
    """Return after how many seconds the worker said that it is not ready, with these words. RELIABILITY 3, row 37: within 10 s."""
    began = time.monotonic()

    async def says_so() -> bool:
        status, text = await readiness(stage)
        return status == 503 and all(word in text for word in words)

    try:
        await eventually(says_so, within=within)
    except AssertionError:
        raise AssertionError(f"not said within {within:g} s: {words}; {await readiness(stage)}") from None
    return time.monotonic() - began


async def ready(stage: Stage, *, within: float = 15.0) -> float:
    """Return after how many seconds the worker said that it is ready."""
    began = time.monotonic()

    async def well() -> bool:
        return (await readiness(stage))[0] == 200

    try:
        await eventually(well, within=within)
    except AssertionError:
        raise AssertionError(f"not ready within {within:g} s: {await readiness(stage)}") from None
    return time.monotonic() - began


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def _fetched(url: str) -> tuple[int, str]:
    """Fetch a page, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  our own worker
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()
