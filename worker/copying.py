"""Have another process copy the database: closing a second descriptor of the file here would drop SQLite's locks (RELIABILITY 6)."""

from __future__ import annotations

import asyncio
import sys

from worker.errors import Unavailable

_PATIENCE = 30.0
"""Seconds for a copy on request: a stop waits for the requests in hand. What takes longer is for `taskflow db backup`."""


async def copied(place: str) -> str:
    """Run `taskflow db backup` on the database at `place`; returns the line it says. Raises `Unavailable` where it makes no copy."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "worker", "db", "backup", "--store-path", place)
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(process.communicate(), _PATIENCE)
    except TimeoutError:
        raise Unavailable(f"the copy was not done within {_PATIENCE:g} s: run `taskflow db backup` on the worker's machine") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        why = " ".join(err.decode(errors="replace").split())[-500:]
        raise Unavailable(f"no copy was made: {why}")
    return out.decode(errors="replace").strip()
