"""Answer questions from a snapshot of a database, without a worker.

This is what `--db` reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.reads import SqliteReads
from nats_taskflow.store.sqlite.steps import FetchedRows, fetch


class OfflineReads(SqliteReads):
    """The reads on a connection that is open already.

    They block: nothing else runs beside them.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        super().__init__()
        database.text_factory = rows.legible
        self._database = database

    async def _fetch(self, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None) -> FetchedRows:
        return fetch(self._database, sql, parameters, room, heavy)
