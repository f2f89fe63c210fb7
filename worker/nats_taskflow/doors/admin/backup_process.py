"""Have another process copy the database: closing a second descriptor of the file here would drop SQLite's locks (RELIABILITY 6)."""

from __future__ import annotations

import asyncio
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from nats_taskflow import version
from nats_taskflow.errors import Unavailable
from nats_taskflow.futures import run_shielded

_PATIENCE = 30.0
"""Seconds for a copy on request: a stop waits for the requests in hand. What takes longer is for `taskflow db backup`."""


_MERCY = 5.0
"""Seconds for a copy that is to end to remove what it has."""


class BackupProcess:
    """Copies the database at a place, one copy at a time: each is as large as the database, and reads all of it."""

    def __init__(self, place: str) -> None:
        self._place = Path(place).absolute()
        self._busy = False

    async def copy(self) -> str:
        """Run `taskflow db backup`; returns the line it says. Raises `Unavailable` where it makes no copy, or another one is being made."""
        if self._busy:
            raise Unavailable("a copy is being made already: ask again once it is done")
        self._busy = True
        try:
            return await _copied(self._place)
        finally:
            self._busy = False


def copy_name(database: Path) -> str:
    """Name a copy that is made now."""
    return f"{database.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup"


async def _copied(place: Path) -> str:
    """Make a copy."""
    copy = place.with_name(copy_name(place))
    pipe = asyncio.subprocess.PIPE
    # Apart from the working directory, which may be anybody's, and without settings: relative ones would name other places.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    process = await asyncio.create_subprocess_exec(
        *_command(place, copy), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd="/", env=environment
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), _PATIENCE)
    except TimeoutError:
        raise Unavailable(f"the copy was not done within {_PATIENCE:g} s: run `taskflow db backup` on the worker's machine") from None
    finally:
        if process.returncode is None:
            await run_shielded(_end(process))
    if process.returncode != 0:
        why = " ".join(err.decode(errors="replace").split())[-500:]
        raise Unavailable(f"no copy was made: {why}")
    if not await asyncio.to_thread(_is_there, copy):
        raise Unavailable(f"no copy was made: {copy} is not there, though the program that was to make it ended well")
    return out.decode(errors="replace").strip()


def _command(place: Path, copy: Path) -> tuple[str, ...]:
    """Return what makes a copy."""
    return version.command("db", "backup", "--store-path", str(place), str(copy))


def _is_there(copy: Path) -> bool:
    """Tell whether there is a file with something in it."""
    try:
        status = copy.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a copy; what it leaves when it has to be killed, the next one removes."""
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _MERCY)
    except TimeoutError:
        process.kill()
        await process.wait()
