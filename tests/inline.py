"""Give `SqliteFlowStore` a database in memory without a thread: quick enough for thousands of examples, and killed in any statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import aiosqlite

from worker.store.opening import migrated
from worker.store.sqlite import SqliteFlowStore


class Killed(BaseException):
    """The process was killed: nothing that catches errors may notice."""


class Inline:
    """What the store uses of aiosqlite, on a plain connection. `fuse`: statements until the kill, None for never.

    With `after_commit` the kill comes right after the next COMMIT instead.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.fuse: int | None = None
        self.after_commit = False
        self.dead = False

    async def execute_fetchall(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        self._burn()
        found = self.database.execute(sql, parameters).fetchall()
        if self.after_commit and sql == "COMMIT":
            self._die()
        return found

    @property
    def _conn(self) -> _Burning:
        """The connection that pieces of work get: it counts their statements, too."""
        return _Burning(self)

    async def _execute(self, work: Callable[..., Any], *given: Any) -> Any:
        if self.dead:
            self._die()
        return work(*given)

    async def close(self) -> None:
        """Keep the database: another worker will open it."""

    def _burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
        if self.dead or (self.fuse is not None and self.fuse < 0):
            self._die()

    def _die(self) -> None:
        self.dead = True
        raise Killed


class _Burning:
    """A plain connection that may be killed at each statement."""

    def __init__(self, inline: Inline) -> None:
        self._inline = inline

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        self._inline._burn()
        return self._inline.database.execute(sql, parameters)

    def executemany(self, sql: str, values: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        self._inline._burn()
        return self._inline.database.executemany(sql, values)


_TEMPLATE: list[bytes] = []


async def fresh() -> sqlite3.Connection:
    """Return a migrated database; migrated once, copied ever after."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    if _TEMPLATE:
        database.deserialize(_TEMPLATE[0])
    else:
        await migrated(cast("aiosqlite.Connection", Inline(database)), "memory")
        _TEMPLATE.append(database.serialize())
    database.execute("PRAGMA foreign_keys = ON")
    return database


async def opened(database: sqlite3.Connection) -> tuple[SqliteFlowStore, Inline]:
    """Open the store on a database as a new worker does: what was not committed is gone."""
    if database.in_transaction:
        database.rollback()
    inline = Inline(database)
    store = SqliteFlowStore(cast("aiosqlite.Connection", inline), None, None, "memory")
    await store._take_over()
    return store, inline
