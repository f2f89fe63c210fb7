"""Load and save a batch in one SQLite transaction. Every statement is set-based or `executemany`: a batch costs a fixed number of them."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from worker.flow.holding import AT_ONCE, Holdings
from worker.flow.model import Waiter
from worker.flow.world import World
from worker.store import rows
from worker.store.base import LostRace
from worker.store.failures import translated
from worker.store.queries import statements
from worker.store.records import Batch, FlowWrite, InboxKey, InboxRow, Loaded, Needs, Place
from worker.store.upkeep import Upkeep
from worker.times import Micros
from worker.wire.outcomes import EXPIRED

Database = sqlite3.Connection


class Last(NamedTuple):
    """The highest row numbers that were ever used."""

    flow: int = 0
    event: int = 0


class SqliteTransaction(Upkeep):
    """One `BEGIN IMMEDIATE` … `COMMIT` on the writing connection. `ended` is called when it is over, however it ends."""

    def __init__(self, writer: Any, epoch: int, last: Last, ended: Callable[[Last | None], None]) -> None:
        super().__init__(writer)
        self._epoch = epoch
        self._last = last
        self._ended = ended
        self._load = statements("load")
        self._numbers: dict[str, int] = {}
        self._now: Micros = 0

    async def begin(self) -> int:
        """Begin, and return the epoch of the newest worker."""
        return await self._on_thread(self._begun)

    def _begun(self, database: Database) -> int:
        """Begin, on the connection's thread."""
        database.execute("BEGIN IMMEDIATE")
        newest: int = database.execute(self._upkeep["get_meta"], ("epoch",)).fetchone()[0]
        return newest

    async def load(self, needs: Needs, now: Micros) -> Loaded:
        """Load what the batch looks at into a fresh world."""
        return await self._on_thread(self._loaded, needs, now)

    def _loaded(self, database: Database, needs: Needs, now: Micros) -> Loaded:
        """Load it, on the connection's thread."""
        self._now = now
        loaded = Loaded(world=World())
        self._load_inbox(database, needs, loaded)
        self._load_pairs(database, needs, loaded.world, now)
        if needs.keys:
            for owner, key, flow_id in self._rows(database, "flows_by_key", needs.keys):
                loaded.world.keys[owner, key] = flow_id
                needs.flows.add(flow_id)
        if needs.parents:
            for parent, child in self._rows(database, "children_by_parent", needs.parents):
                loaded.world.families[parent].append(child)
                needs.flows.add(child)
        self._load_flows(database, needs.flows, loaded.world)
        if needs.held:
            self._hold(self._rows(database, "held_by_key", needs.held), loaded.world)
        if needs.holding:
            self._load_holdings(database, needs, loaded.world.holdings)
        if needs.steps:
            for row in self._rows(database, "steps_by_run", needs.steps):
                step = rows.step(row)
                loaded.world.steps[step.flow_id, step.run_id] = step
        return loaded

    def _load_inbox(self, database: Database, needs: Needs, loaded: Loaded) -> None:
        """Load the messages known by identity or place."""
        if needs.inbox:
            for row in self._rows(database, "inbox_by_key", needs.inbox):
                known = rows.inbox(row)
                loaded.inbox[_identity(known)] = known
        if needs.places:
            for row in self._rows(database, "inbox_by_place", needs.places):
                known = rows.inbox(row)
                loaded.places.setdefault(_place(known), []).append(known)

    def _load_pairs(self, database: Database, needs: Needs, world: World, now: Micros) -> None:
        """Load who waits, who waited last, and what is held for the pairs; their flows are needed too."""
        pairs = needs.pairs | needs.parking
        if not pairs:
            return
        for flow_id, wait_id, leaf, topic, correlation_id, mode in self._rows(database, "waiters_by_pair", pairs):
            world.add_waiter(Waiter(flow_id=flow_id, wait_id=wait_id, leaf=leaf, topic=topic, correlation_id=correlation_id, mode=mode))
            needs.flows.add(flow_id)
        unawaited = {pair for pair in needs.pairs if not world.waiting.get(pair)}
        if unawaited:
            for topic, correlation_id, flow_id in self._rows(database, "last_by_pair", unawaited):
                world.last[topic, correlation_id] = flow_id
                needs.flows.add(flow_id)
        if needs.parking:
            self._hold(self._rows(database, "held_by_pair", needs.parking, now), world)

    def _hold(self, found: Iterable[Any], world: World) -> None:
        """Add held replies to the world, each once; one that cannot be read stays where it is."""
        for row in found:
            try:
                held = rows.held(row)
            except rows.Unreadable as bad:
                self._log.error("held_reply_passed_over", why=str(bad))
                continue
            if world.held_by_key(held.key) is None:
                world.replies[held.pair].append(held)

    def _load_holdings(self, database: Database, needs: Needs, holdings: Holdings) -> None:
        """Load how many replies are held, and those that would make room, no more than the batch can displace."""
        for tenant, count in self._rows(database, "held_counts", needs.holding):
            if tenant is None:
                holdings.total = count
            else:
                holdings.of[tenant] = count
        wanted = {t: holdings.of.get(t, 0) + new - needs.max_held_of_tenant for t, new in needs.holding.items()}
        arriving = sum(needs.holding.values())
        over = holdings.total + arriving - needs.max_held
        if over > 0:
            for tenant, count in database.execute(self._load["held_most"]):
                holdings.of[tenant] = count
                wanted[tenant] = max(wanted.get(tenant, 0), over)
        for tenant, number in wanted.items():
            if number > 0:
                found = database.execute(self._load["held_first"], (tenant, min(number, AT_ONCE * arriving)))
                holdings.first[tenant] = [rows.held_mark(row) for row in found]

    def _load_flows(self, database: Database, flow_ids: set[str], world: World) -> None:
        """Load flows by id; a row that cannot be read is named in the world and stops nothing else (SEMANTICS R13)."""
        if not flow_ids:
            return
        try:
            found = self._rows(database, "flows_by_id", flow_ids)
        except sqlite3.OperationalError as bad:
            if "UTF-8" not in str(bad):
                raise
            found = self._legibly(database, "flows_by_id", flow_ids, bad)
        for row in found:
            self._numbers[row[1]] = row[0]
            try:
                world.flows[row[1]] = rows.flow(row[1:])
            except rows.Unreadable as bad:
                world.unreadable[row[1]] = str(bad)

    def _rows(self, database: Database, name: str, wanted: Iterable[Any], *more: Any) -> Sequence[Any]:
        """Run a set-based load for the wanted ids."""
        ids = msgspec.json.encode(list(wanted)).decode()
        return database.execute(self._load[name], (ids, *more)).fetchall()

    def _legibly(self, database: Database, name: str, wanted: Iterable[Any], refused: sqlite3.OperationalError) -> Sequence[Any]:
        """Load again after one damaged label made the driver refuse the whole result; not always so, for it costs on every text."""
        traceback.clear_frames(refused.__traceback__)  # the cursor in there would keep its statement, and so the checkpoint, open
        database.text_factory = rows.legible
        try:
            return self._rows(database, name, wanted)
        finally:
            database.text_factory = str

    async def save(self, batch: Batch) -> None:
        """Write the batch; see the port."""
        await self._on_thread(self._saved, batch)

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
        self._many(database, "insert_inbox", [rows.inbox_insert(row) for row in batch.inbox])
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
        self._last = Last(self._last.flow, self._last.event + len(values))

    def _save_outgoing(self, database: Database, batch: Batch) -> None:
        """Queue messages to delegates, but not the request of a wait that the batch has ended again."""
        over = set(batch.closed)
        wanted = [m for m in batch.outgoing if m.kind == "cancel" or (m.flow_id, m.wait_id) not in over]
        self._many(database, "insert_outgoing", [rows.outgoing_insert(self._numbers[m.flow_id], m, self._now) for m in wanted])

    def _save_flows(self, database: Database, writes: list[FlowWrite]) -> None:
        """Insert new flows, update known ones; a row that is not as the batch saw it refuses the whole."""
        new = [write for write in writes if write.was is None]
        for write in new:
            self._last = Last(self._last.flow + 1, self._last.event)
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
            await self._writer.execute_fetchall("COMMIT")
        except sqlite3.Error as bad:
            await self.rollback()
            raise translated(bad) from bad
        self._ended(self._last)

    async def rollback(self) -> None:
        """Undo everything; an error here means that SQLite has rolled back by itself."""
        try:
            await self._writer.execute_fetchall("ROLLBACK")
        except sqlite3.Error:
            self._log.debug("rollback found no transaction")
        finally:
            self._ended(None)


def _identity(row: InboxRow) -> InboxKey:
    """Return what the row is found by."""
    return (row.scope or "", row.key or "")


def _place(row: InboxRow) -> Place:
    """Return where the row's message lies."""
    return (row.source, row.source_seq or 0)
