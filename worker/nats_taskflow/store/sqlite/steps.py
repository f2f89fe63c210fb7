"""Fetch rows until they weigh too much.

SQLite makes a row when it is fetched, so what comes after is never loaded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from nats_taskflow.store.records import ALL

PAGE_BYTES = 512 * 1024
"""How much the rows of a page may weigh; the last one may be what goes over it."""


class Executor(Protocol):
    """A connection, as far as this module needs it."""

    def execute(self, sql: str, parameters: Sequence[Any], /) -> sqlite3.Cursor:
        """Run a statement."""


class FetchedRows(NamedTuple):
    """Rows, and how much they weigh.

    `weight`: how many bytes of text and blobs they have together, counted where there was a bound. `cut`: the bound was met.
    """

    rows: Sequence[Any]
    weight: int = 0
    cut: bool = False

    def place(self, limit: int, at: int = 0) -> Any:
        """Return what the last row has in column `at`, None where nothing can follow it."""
        return self.rows[-1][at] if self.rows and (self.cut or len(self.rows) == limit) else None


def fetch(database: Executor, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None) -> FetchedRows:
    """Run a statement and return its rows, up to a weight of `room` bytes.

    The row that reaches `room` is the last. `ALL`: every row. `heavy`: the column that is weighed, where that is known, for rows that are
    read by the thousand; it is text or a blob.
    """
    cursor = database.execute(sql, parameters)
    if room == ALL:
        return FetchedRows(cursor.fetchall())
    fetched: list[Any] = []
    weight = 0
    for row in cursor:
        fetched.append(row)
        weight += len(row[heavy]) if heavy is not None else sum(len(value) for value in row if isinstance(value, bytes | str))
        if weight >= room:
            cursor.close()  # or it would keep its snapshot, and the log could not be checkpointed
            return FetchedRows(fetched, weight, cut=True)
    return FetchedRows(fetched, weight)
