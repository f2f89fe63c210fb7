"""Load and save a batch in one SQLite transaction. Every statement is set-based or `executemany`: a batch costs a fixed number of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from worker.errors import StoreLocked
from worker.store import rows
from worker.store.base import LostRace
from worker.store.loading import Database, Last, Loading
from worker.store.records import Batch, FlowWrite
from worker.store.upkeep import Result
from worker.wire.outcomes import EXPIRED


class SqliteTransaction(Loading):
    """One `BEGIN IMMEDIATE` … `COMMIT` on the writing connection. `ended` is called when it is over, however it ends.

    A batch costs two hops to the connection's thread: it begins with the first statement, and what is saved is written with the commit.
    """

    def __init__(self, writer: Any, epoch: int, last: Last, ended: Callable[[Last | None], None]) -> None:
        super().__init__(writer, last)
        self._epoch = epoch
        self._ended = ended
        self._begun = self._over = False
        self._unsaved: list[Batch] = []

    async def _on_thread(self, work: Callable[..., Result], *given: Any) -> Result:
        """Do a piece of work, after what the transaction owes: its beginning, and what was saved."""
        return await super()._on_thread(self._in_turn, work, *given)

    def _in_turn(self, database: Database, work: Callable[..., Result], *given: Any) -> Result:
        """Begin and save first, where that is still to do, on the connection's thread."""
        if not self._begun:
            self._begin(database)
        while self._unsaved:
            self._saved(database, self._unsaved.pop(0))
        return work(database, *given)

    def _begin(self, database: Database) -> None:
        """Begin, and check that no newer worker has taken over."""
        database.execute("BEGIN IMMEDIATE")
        self._begun = True
        newest = database.execute(self._upkeep["get_meta"], ("epoch",)).fetchone()[0]
        if newest != self._epoch:
            message = f"a newer worker (epoch {newest}) has taken over the database; this one (epoch {self._epoch}) stops"
            raise StoreLocked(message)

    async def save(self, batch: Batch) -> None:
        """Take the batch to be written; see the port."""
        self._unsaved.append(batch)

    def _saved(self, database: Database, batch: Batch) -> None:
        """Write it, on the connection's thread."""
        self._save_flows(database, batch.flows)
        number = self._numbers
        self._save_events(database, batch)
        self._many(database, "upsert_step", [rows.step_upsert(number[s.flow_id], s) for s in batch.steps])
        # Closing comes before opening: a generation may end and the next open the same pair within one batch.
        self._many(database, "close_waits", [(number[flow_id], wait_id) for flow_id, wait_id in batch.closed])
        self._many(database, "drop_requests", [(number[flow_id], wait_id) for flow_id, wait_id in batch.closed])
        self._many(database, "close_leaf", [(number[flow_id], wait_id, leaf) for flow_id, wait_id, leaf in batch.satisfied])
        self._many(
            database,
            "insert_waiter",
            [(number[w.flow_id], w.wait_id, w.leaf, w.topic, w.correlation_id, w.mode, int(is_open)) for w, is_open in batch.opened],
        )
        self._save_outgoing(database, batch)
        self._save_inbox(database, batch)
        self._many(database, "insert_held", [rows.held_insert(held) for held in batch.held])
        self._many(database, "delete_held", [(held.key,) for held, _, _ in batch.taken])
        self._many(database, "change_outcome", [(outcome, result, held.key) for held, outcome, result in batch.taken])
        self._many(database, "bury_displaced", [(message, self._now, key) for key, message in batch.displaced])
        self._many(database, "delete_held", [(key,) for key, _ in batch.displaced])
        self._many(database, "change_outcome", [("expired", EXPIRED, key) for key, _ in batch.displaced])
        self._many(database, "delete_held", [(held.key,) for held, _, _ in batch.spoiled])
        self._many(database, "change_outcome", [("rejected", result, held.key) for held, _, result in batch.spoiled])
        letters = [*batch.dead, *(letter for _, letter, _ in batch.spoiled)]
        self._many(database, "insert_dead_letter", [rows.dead_letter_insert(letter) for letter in letters])
        self._many(database, "count", [(name, by) for name, by in batch.counts.items() if by])

    def _save_events(self, database: Database, batch: Batch) -> None:
        """Append to the journal, numbered in the order of the batch."""
        batch.first_event = first = self._last.event + 1
        values = [rows.event_insert(n, self._numbers[e.flow_id], e, self._epoch) for n, e in enumerate(batch.events, first)]
        self._many(database, "insert_event", values)
        self._last = self._last._replace(event=self._last.event + len(values))

    def _save_inbox(self, database: Database, batch: Batch) -> None:
        """Append what was taken in, and note how far each stream has come."""
        self._many(database, "insert_inbox", [rows.inbox_insert(row) for row in batch.inbox])
        for row in batch.inbox:
            if row.source_seq is not None and row.source_seq > self._taken_up_to(database, row.source):
                self._places[row.source] = row.source_seq

    def _save_outgoing(self, database: Database, batch: Batch) -> None:
        """Queue messages to delegates, but not the request of a wait that the batch has ended again."""
        over = set(batch.closed)
        wanted = [m for m in batch.outgoing if m.kind == "cancel" or (m.flow_id, m.wait_id) not in over]
        self._many(database, "insert_outgoing", [rows.outgoing_insert(self._numbers[m.flow_id], m, self._now) for m in wanted])

    def _save_flows(self, database: Database, writes: list[FlowWrite]) -> None:
        """Insert new flows, update known ones; a row that is not as the batch saw it refuses the whole."""
        new = [write for write in writes if write.was is None]
        for write in new:
            self._last = self._last._replace(flow=self._last.flow + 1)
            self._numbers[write.flow.id] = self._last.flow
        self._many(database, "insert_flow", [rows.flow_insert(self._numbers[w.flow.id], w.flow, w.due_us, w.idempotency_key) for w in new])
        changed = [(w.flow, w.was, w.due_us) for w in writes if w.was is not None]
        updates = [rows.flow_update(self._numbers[flow.id], flow, was, due_us) for flow, was, due_us in changed]
        if self._many(database, "update_flow", updates) != len(updates):
            message = "a flow changed under the batch"
            raise LostRace(message)

    def _many(self, database: Database, name: str, values: list[tuple[Any, ...]]) -> int:
        """Run a statement for all values; returns how many rows it changed."""
        if not values:
            return 0
        return database.executemany(self._saves[name], values).rowcount

    async def commit(self) -> None:
        """Make it durable: with `synchronous=FULL` the commit returns after the log is on disk."""
        try:
            await self._on_thread(_committed)
        except BaseException:
            await self.rollback()
            raise
        self._over = True
        self._ended(self._last._replace(places={**self._last.places, **self._places}))

    async def rollback(self) -> None:
        """Undo everything; an error here means that SQLite has rolled back by itself."""
        if self._over:
            return
        self._over = True
        try:
            if self._begun:
                await self._writer.execute_fetchall("ROLLBACK")
        except sqlite3.Error:
            self._log.debug("rollback found no transaction")
        finally:
            self._ended(None)


def _committed(database: Database) -> None:
    """Commit, on the connection's thread."""
    database.execute("COMMIT")
