"""Load and save a batch in one SQLite transaction.

It takes a fixed number of statements, set-based or `executemany`, whatever the size of the batch.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from nats_taskflow.errors import StoreLocked
from nats_taskflow.store.port import LostRace
from nats_taskflow.store.records import RETRY_DELAYS, Batch, FlowWrite
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.load import BatchLoader, Sequences
from nats_taskflow.wire.outcomes import EXPIRED


class SqliteTransaction(BatchLoader):
    """One `BEGIN IMMEDIATE` … `COMMIT` on the writing connection.

    It is on its thread from beginning to end. `last` says how far it has come: true once it is committed.
    """

    def __init__(self, database: sqlite3.Connection, epoch: int, last: Sequences) -> None:
        super().__init__(database, last)
        self._epoch = epoch

    def begin(self) -> None:
        """Begin, and check that no newer worker has taken over. Raises `StoreLocked`."""
        self._database.execute("BEGIN IMMEDIATE")
        newest = self._database.execute(self._upkeep["get_meta"], ("epoch",)).fetchone()[0]
        if newest != self._epoch:
            message = f"a newer worker (epoch {newest}) has taken over the database; this one (epoch {self._epoch}) stops"
            raise StoreLocked(message)

    def commit(self) -> None:
        """Make the batch durable.

        With `synchronous=FULL` this returns once the log is on disk.
        """
        self._database.execute("COMMIT")

    def rollback(self) -> None:
        """Undo everything.

        Never raises: after an error SQLite may have rolled back by itself.
        """
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error as bad:
            self._log.warning("not_rolled_back", why=str(bad))

    @property
    def last(self) -> Sequences:
        """The highest row numbers used so far, and the last place of each stream.

        Those of this transaction are counted.
        """
        return self._last._replace(places={**self._last.places, **self._places})

    def save(self, batch: Batch) -> None:
        """Write the batch; see the port."""
        self._each(self._upkeep["set_aside"], batch.set_aside.items())
        self._save_flows(batch.flows)
        number = self._numbers
        self._save_events(batch)
        self._many("upsert_step", [rows.step_upsert(number[s.flow_id], s) for s in batch.steps])
        # Closing comes before opening: a generation may end and the next open the same pair within one batch.
        self._many("close_waits", [(number[flow_id], wait_id) for flow_id, wait_id in batch.closed])
        self._many("drop_requests", [(number[flow_id], wait_id) for flow_id, wait_id in batch.closed])
        self._many("close_leaf", [(number[flow_id], wait_id, leaf) for flow_id, wait_id, leaf in batch.satisfied])
        self._many(
            "insert_waiter",
            [(number[w.flow_id], w.wait_id, w.leaf, w.topic, w.correlation_id, w.mode, int(is_open)) for w, is_open in batch.opened],
        )
        self._many("keep_end", [(number[end.flow_id], int(end.cascade), end.trace) for end in batch.unfinished])
        self._many("forget_end", [(number[flow_id],) for flow_id in batch.followed_up])
        self._many("refuse_request", [(number[flow_id], wait_id, self._now, *RETRY_DELAYS) for flow_id, wait_id, _ in batch.refused])
        self._save_outgoing(batch)
        self._save_inbox(batch)
        self._many("insert_held", [rows.held_insert(held) for held in batch.held])
        self._many("delete_held", [(held.key,) for held, _, _ in batch.taken])
        self._many("change_outcome", [(outcome, result, held.key) for held, outcome, result in batch.taken])
        self._many("bury_displaced", [(message, self._now, key) for key, message in batch.displaced])
        self._many("delete_held", [(key,) for key, _ in batch.displaced])
        self._many("change_outcome", [("expired", EXPIRED, key) for key, _ in batch.displaced])
        self._many("delete_held", [(held.key,) for held, _, _ in batch.spoiled])
        self._many("change_outcome", [("rejected", result, held.key) for held, _, result in batch.spoiled])
        letters = [*batch.dead, *(letter for _, letter, _ in batch.spoiled)]
        self._many("insert_dead_letter", [rows.dead_letter_insert(letter) for letter in letters])
        self._many("count", [(name, by) for name, by in batch.counts.items() if by])
        changed = [(agent, more.open_flows, more.state_bytes) for agent, more in batch.usages.items()]
        self._many("count_usage", [usage for usage in changed if any(usage[1:])])

    def _save_events(self, batch: Batch) -> None:
        """Append to the journal, numbered in the order of the batch."""
        batch.first_event = first = self._last.event + 1
        values = [rows.event_insert(n, self._numbers[e.flow_id], e, self._epoch) for n, e in enumerate(batch.events, first)]
        self._many("insert_event", values)
        self._last = self._last._replace(event=self._last.event + len(values))

    def _save_inbox(self, batch: Batch) -> None:
        """Append what was taken in, and note how far each stream has come."""
        self._many("insert_inbox", [rows.inbox_insert(row) for row in batch.inbox])
        for row in batch.inbox:
            if row.source_seq is not None and row.source_seq > self._taken_up_to(row.source):
                self._places[row.source] = row.source_seq

    def _save_outgoing(self, batch: Batch) -> None:
        # The request of a wait that the batch has ended again is not queued.
        over = set(batch.closed)
        messages = [m for m in batch.outgoing if m.kind == "cancel" or (m.flow_id, m.wait_id) not in over]
        self._many("insert_outgoing", [rows.outgoing_insert(self._numbers[m.flow_id], m, self._now) for m in messages])

    def _save_flows(self, writes: list[FlowWrite]) -> None:
        """Insert new flows and update known ones.

        Raises `LostRace` where a row is not as the batch saw it.
        """
        new = [write for write in writes if write.was is None]
        for write in new:
            self._last = self._last._replace(flow=self._last.flow + 1)
            self._numbers[write.flow.id] = self._last.flow
        self._many("insert_flow", [rows.flow_insert(self._numbers[w.flow.id], w.flow, w.due_us, w.idempotency_key) for w in new])
        changed = [(w.flow, w.was, w.due_us) for w in writes if w.was is not None]
        updates = [rows.flow_update(self._numbers[flow.id], flow, was, due_us) for flow, was, due_us in changed]
        if self._many("update_flow", updates) != len(updates):
            message = "a flow changed under the batch"
            raise LostRace(message)

    def _many(self, name: str, values: list[tuple[Any, ...]]) -> int:
        return self._each(self._saves[name], values)
