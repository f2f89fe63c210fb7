"""Open a database and be killed at its k-th statement: `python -m tests.faults.opening FOLDER FIRST STEP`; prints how many times it was.

Each try is a fork of a process that has never opened a database. After each the file must open, and be whole.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiosqlite

from nats_taskflow.flow.model import Flow
from nats_taskflow.store.sqlite.statements import migrations
from nats_taskflow.store.sqlite.store import SqliteFlowStore

MOST = 500
_FLOW = "INSERT INTO flows (id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested, "
_FLOW += "state_json, revision, seq, created_us, updated_us) VALUES ('f', 'c', 'g', 'o', 'r', 's', 'running', 0, '{}', 0, 1, 1, 1)"


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own; return how it ended, negative for a signal."""
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException as failed:  # noqa: BLE001  said, and told by the exit code: this is a process of its own
            sys.stderr.write(f"{failed!r}\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(nth: int) -> None:
    """Have this process killed before its nth statement."""
    execute, count = aiosqlite.Connection.execute_fetchall, 0

    async def counted(self: aiosqlite.Connection, *args: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return await execute(self, *args, **named)

    aiosqlite.Connection.execute_fetchall = counted  # type: ignore[method-assign,assignment]


def opened(path: Path, *, close: bool) -> None:
    """Open the database, and close it or leave it as a killed process does."""

    async def life() -> Flow | None:
        store = await SqliteFlowStore.open(str(path))
        if not close:
            os._exit(0)
        found = await store.get("f")
        await store.close()
        return found

    asyncio.run(life())


def whole(path: Path, flows: int) -> None:
    """Look at a closed database. Raises `AssertionError`."""
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
    assert database.execute("SELECT count(*) FROM flows").fetchone() == (flows,)
    assert database.execute("SELECT value FROM meta WHERE name = 'clean'").fetchone() == (1,)
    database.close()


def insert(path: Path) -> None:
    """Put a flow into a database in use, and leave it in its log."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(_FLOW)
    os._exit(0)


def every(folder: Path, first: int, step: int, *, used: bool) -> int:
    """Kill an opening at every `step`th of its statements in turn; return how many these are."""
    for kills, nth in enumerate(range(first, MOST, step)):
        path = folder / f"{'used' if used else 'new'}-{nth}.db"
        if used:
            assert forked(lambda path=path: opened(path, close=False)) == 0  # type: ignore[misc]  # mypy: the default of a lambda
            assert forked(lambda path=path: insert(path)) == 0  # type: ignore[misc]

        def doomed(path: Path = path, nth: int = nth) -> None:
            kill_at(nth)
            opened(path, close=False)

        ended = forked(doomed)
        assert forked(lambda path=path: opened(path, close=True)) == 0, f"after statement {nth}"  # type: ignore[misc]
        assert forked(lambda path=path: whole(path, int(used))) == 0, f"after statement {nth}"  # type: ignore[misc]
        for file in folder.glob(f"{path.name}*"):
            file.unlink()
        if ended == 0:
            return kills
        assert ended == -signal.SIGKILL
    raise AssertionError("an opening has no end")


if __name__ == "__main__":
    where, turn = Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
    print(every(where, *turn, used=False), every(where, *turn, used=True))  # noqa: T201  read by the test
