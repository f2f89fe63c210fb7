"""What the checks look at: a snapshot of the database, and the streams' messages.

There may be no messages of the streams.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from nats_taskflow.flow.model import Flow, FlowEvent, Waiter
from nats_taskflow.store.invariants.ledger import Ledger
from nats_taskflow.store.sqlite import rows
from nats_taskflow.units import SECOND, Micros
from nats_taskflow.wire.subjects import Subjects

REMEMBERED: Micros = 14 * 24 * 3600 * SECOND
"""How long a message is remembered at least, by default: twice `stream.max_age`."""


class Entry(msgspec.Struct, frozen=True):
    """A journal row: its number in the whole journal and in the flow's, and the entry.

    The entry is None where it cannot be read.
    """

    n: int
    seq: int
    event: FlowEvent | None
    flaw: str = ""


class StoredOutcome(msgspec.Struct, frozen=True):
    """What the stored outcome of a command that took effect says of the flow."""

    scope: str
    key: str
    revision: int


class FlowHistory(msgspec.Struct, frozen=True, kw_only=True):
    """One flow with all that belongs to it.

    `flow` is None where the row cannot be read: `flaw` says why.
    """

    id: str
    owner: str
    status: str
    revision: int
    seq: int
    due_us: Micros | None
    set_aside: bool
    flow: Flow | None
    flaw: str
    entries: list[Entry]
    waiters: list[tuple[Waiter, bool]]
    outcomes: list[StoredOutcome]

    @property
    def events(self) -> list[FlowEvent]:
        """The journal, as far as it can be read."""
        return [entry.event for entry in self.entries if entry.event is not None]


class InboundProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an inbound stream is taken in.

    It keeps messages from `first` on, and the worker has settled all up to `settled`. Read it before the snapshot is taken: what is settled
    is in the snapshot then. `ignored`: messages that are not for the worker.
    """

    stream: str
    first: int
    settled: int
    ignored: int = 0


class Evidence:
    """What the invariants are checked over.

    `database`: a connection on which one read transaction is open.

    `now` and `remembered` (microseconds) say what may have been forgotten by now. `settled`: nothing is in flight any more, so that a
    row that is not published is a violation. `events` and `letters`: what was read of those streams. While a worker runs, read `marks`
    first, then the streams, then take the snapshot: otherwise what the worker did meanwhile looks like a violation.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        *,
        now: Micros,
        remembered: Micros = REMEMBERED,
        settled: bool = False,
        subjects: Subjects | None = None,
        events: Ledger | None = None,
        letters: Ledger | None = None,
        marks: Mapping[str, int] | None = None,
        taken: InboundProgress | None = None,
    ) -> None:
        database.text_factory = rows.legible
        self.database = database
        self.now = now
        self.settled = settled
        self.subjects = subjects or Subjects()
        self.events = events
        self.letters = letters
        self.taken = taken
        self._remembered = remembered
        self._marks = marks

    def rows(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Run a query; its rows come one by one."""
        return self.database.execute(sql, parameters)

    def value(self, sql: str, *parameters: Any) -> Any:
        """Return the one value that a query gives; None where there is none."""
        row = self.database.execute(sql, parameters).fetchone()
        return row[0] if row else None

    @cached_property
    def marks(self) -> Mapping[str, int]:
        """Up to which row each outlet was published when its stream was read."""
        return self._marks if self._marks is not None else marks(self.database)

    @cached_property
    def horizon(self) -> Micros:
        """The time before which messages may have been forgotten.

        They were forgotten rightly, or because the clock was once ahead of now.
        """
        latest = max(self.value("SELECT max(at_us) FROM inbox") or 0, self.value("SELECT max(at_us) FROM flow_events") or 0)
        return max(self.now, latest) - self._remembered

    @cached_property
    def pruned(self) -> bool:
        """Whether messages have been forgotten.

        Rows are numbered without gaps, so a gap is a row that was deleted.

        Once all rows are deleted, the numbers begin again: then the journal is older than the messages, or has lost its own beginning.
        """
        count, first, last, oldest = self.rows("SELECT count(*), min(n), max(n), min(at_us) FROM inbox").fetchone()
        if count == 0 or first != 1 or last != count:
            return True
        entry = self.rows("SELECT n, at_us FROM flow_events ORDER BY n LIMIT 1").fetchone()
        if entry is None:
            return bool(self.value("SELECT seq FROM sqlite_sequence WHERE name = 'flow_events'"))
        return bool(entry[0] != 1 or entry[1] < oldest)


def marks(database: sqlite3.Connection) -> dict[str, int]:
    """Read up to which row each outlet is known to be published."""
    return dict(database.execute("SELECT outlet, n FROM published").fetchall())
