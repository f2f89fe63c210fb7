"""Answer questions from a database that is open already for reading, without a worker: what `--db` reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from worker.store import rows
from worker.store.reads import SqliteReads


class OfflineReads(SqliteReads):
    """The reads, on somebody else's connection. They block: there is nobody beside them."""

    def __init__(self, database: sqlite3.Connection) -> None:
        super().__init__()
        database.text_factory = rows.legible
        self._database = database

    async def _read(self, sql: str, parameters: Sequence[Any]) -> Sequence[Any]:
        """Run a statement."""
        return self._database.execute(sql, parameters).fetchall()

    async def room(self) -> Mapping[str, int]:
        """Say nothing: a snapshot is only read, so how much room there is does not matter to it."""
        return {}
