"""Back up the database in a child process.

Opening the file here and closing it again would release this process's SQLite locks (RELIABILITY 6).
"""

from __future__ import annotations

import asyncio
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from nats_taskflow import version
from nats_taskflow.errors import Unavailable
from nats_taskflow.futures import run_shielded

_COPY_SECONDS = 30.0
"""For a copy on request: a stop waits for the requests in hand. What takes longer is for `taskflow db backup`."""
_CLEAN_UP_SECONDS = 5.0
"""For a copy that is told to end, to remove what it has written."""


class BackupProcess:
    """Copies the database, one copy at a time.

    Each reads all of it and takes as much room again.
    """

    def __init__(self, place: str) -> None:
        self._place = Path(place).absolute()
        self._busy = False

    async def copy(self) -> str:
        """Run `taskflow db backup` and return the line it prints.

        Raises `Unavailable` where that fails, or while another copy is made.
        """
        if self._busy:
            raise Unavailable("a copy is being made already: ask again once it is done")
        self._busy = True
        try:
            return await _run_backup(self._place)
        finally:
            self._busy = False


def copy_name(database: Path) -> str:
    """Return the name of a copy that is made now."""
    return f"{database.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup"


async def _run_backup(place: Path) -> str:
    """Run the child process to its end, or end it when it takes too long."""
    copy = place.with_name(copy_name(place))
    pipe = asyncio.subprocess.PIPE
    # Not in the working directory, which may be anybody's, and without settings: relative ones would name other places.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    process = await asyncio.create_subprocess_exec(
        *_command(place, copy), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd="/", env=environment
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), _COPY_SECONDS)
    except TimeoutError:
        raise Unavailable(f"the copy was not done within {_COPY_SECONDS:g} s: run `taskflow db backup` on the worker's machine") from None
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
    return version.command("db", "backup", "--store-path", str(place), str(copy))


def _is_there(copy: Path) -> bool:
    """Return whether there is a regular file with something in it."""
    try:
        status = copy.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the child process.

    What it leaves when it has to be killed, the next copy removes.
    """
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _CLEAN_UP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
