"""SQLite in the process's memory, without a thread, killable in any statement.

Quick enough for thousands of examples. The worker's own store runs on it, with every migration, constraint and statement that it has on a
file. Two things differ on purpose. The database outlives the worker that is killed on it, as a file would. And a statement is over when it
returns, so that a test can tell when nothing is under way any more. (A shared cache or a file in memory would need SQLite's threads, and
nothing then says when they are done.)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import aiosqlite

from nats_taskflow.store.sqlite.opening import APPLICATION_ID, migrate
from nats_taskflow.store.sqlite.store import SqliteFlowStore


class Killed(BaseException):
    """The worker was killed. A `BaseException`, so that no handler of errors sees it."""


class InlineConnection:
    """The part of aiosqlite that the store uses, on a plain connection.

    `fuse`: SQL statements until the kill; None for never. With `after_commit` the kill comes right after the next COMMIT instead. `killed`
    is called at the kill, once.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.fuse: int | None = None
        self.after_commit = False
        self.dead = False
        self.killed: Callable[[], None] = lambda: None

    async def execute_fetchall(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run a statement and return its rows."""
        return self._conn.execute(sql, parameters).fetchall()

    @property
    def _conn(self) -> _Burning:
        return _Burning(self)

    async def _execute(self, work: Callable[..., Any], *given: Any) -> Any:
        if self.dead:
            self.die()
        return work(*given)

    async def close(self) -> None:
        """Keep the database: another worker will open it."""

    def burn(self) -> None:
        """Count a statement. Raises `Killed` when the fuse has burnt down before it."""
        if self.fuse is not None:
            self.fuse -= 1
        if self.dead or (self.fuse is not None and self.fuse < 0):
            self.die()

    def die(self) -> None:
        """Kill the worker: from now on every statement raises `Killed`, as this does."""
        was_dead, self.dead = self.dead, True
        if not was_dead:
            self.killed()
        raise Killed


class _Burning:
    """A plain connection that counts its statements, and may be killed at each."""

    def __init__(self, inline: InlineConnection) -> None:
        self._inline = inline

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement."""
        self._inline.burn()
        cursor = self._inline.database.execute(sql, parameters)
        if self._inline.after_commit and sql == "COMMIT":
            self._inline.die()
        return cursor

    @property
    def in_transaction(self) -> bool:
        """Whether something is begun that a rollback would undo."""
        return self._inline.database.in_transaction

    def executemany(self, sql: str, values: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        """Run a statement for each of the values."""
        self._inline.burn()
        return self._inline.database.executemany(sql, values)


class InlineStore(SqliteFlowStore):
    """The worker's store on a database of the process."""

    @classmethod
    async def on(cls, database: sqlite3.Connection) -> tuple[InlineStore, InlineConnection]:
        """Open the store as a new worker does: uncommitted changes are rolled back."""
        if database.in_transaction:
            database.rollback()
        inline = InlineConnection(database)
        store = cls(cast("aiosqlite.Connection", inline), None, "memory")
        await store._take_over()
        return store, inline


_TEMPLATE: list[bytes] = []


async def fresh() -> sqlite3.Connection:
    """Return a migrated database: a copy of one that is migrated only once."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    if _TEMPLATE:
        database.deserialize(_TEMPLATE[0])
    else:
        await migrate(cast("aiosqlite.Connection", InlineConnection(database)), "memory")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _TEMPLATE.append(database.serialize())
    database.execute("PRAGMA foreign_keys = ON")
    return database


def copied(database: sqlite3.Connection) -> sqlite3.Connection:
    """Return a copy, to read without disturbing the original."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    copy.deserialize(database.serialize())
    return copy
