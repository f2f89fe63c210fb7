"""Load what a batch looks at: a few set-based statements, whatever its size."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from nats_taskflow.flow.conditions import FLOW_ENDS
from nats_taskflow.flow.held_quota import AT_ONCE, HeldCounts
from nats_taskflow.flow.model import Waiter
from nats_taskflow.flow.usage import Usage
from nats_taskflow.flow.view import World
from nats_taskflow.store.port import TooHeavy
from nats_taskflow.store.records import ALL, InboxKey, InboxRow, Loaded, Needs, Place
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.store.sqlite.steps import fetch
from nats_taskflow.store.sqlite.upkeep import Upkeep
from nats_taskflow.units import Micros

_HELD_LOOKED_AT, _HELD_AT_ONCE, _HELD_BYTES = 64, 32, 2 * 1024 * 1024
"""How many held replies of a pair are looked at; after how many of all pairs no second one is loaded; about how much they may weigh."""
_RESULT, _STATE, _WAITERS_STATE = 4, 9, 14
"""Columns that weigh: of a message taken in, of a flow, and of a wait with its flow."""
_TOPICS_THAT_PAY = 2
"""How many of the largest topics of a tenant may have to make room within one batch."""


class Sequences(NamedTuple):
    """The highest row numbers that were ever used, and the last place of each stream.

    A message was taken from that place.
    """

    flow: int = 0
    event: int = 0
    places: Mapping[str, int] = MappingProxyType({})


class BatchLoader(Upkeep):
    """The loading half of a transaction; `last`: how far those before it came."""

    def __init__(self, database: sqlite3.Connection, last: Sequences) -> None:
        super().__init__(database)
        self._last = last
        self._load = statements("load")
        self._numbers: dict[str, int] = {}
        self._places: dict[str, int] = {}
        self._cancelling: dict[int, str] = {}
        self._now: Micros = 0
        self._room = ALL

    def load(self, needs: Needs, now: Micros) -> Loaded:
        """Load what the batch looks at into a fresh world."""
        self._now, self._room = now, needs.max_bytes
        loaded = Loaded(world=World())
        self._load_inbox(needs, loaded)
        self._load_pairs(needs, loaded, now)
        if needs.keys:
            for owner, key, flow_id in self._rows("flows_by_key", needs.keys):
                loaded.world.keys[owner, key] = flow_id
                needs.flows.add(flow_id)
        if needs.watched or needs.parents:
            self._load_followers(needs, loaded)
        if needs.new:
            loaded.world.pruned.update(flow_id for (flow_id,) in self._rows("tombstones_by_id", needs.new))
        self._load_flows(needs.flows, loaded.world)
        if needs.held:
            self._add_held(self._rows("held_by_key", needs.held), loaded.world)
        if needs.holding:
            self._load_holdings(needs, loaded.world.holdings)
        self._load_cancel_reasons(loaded.world)
        if needs.agents:
            stored = {agent: Usage(*used) for agent, *used in self._rows("usage_by_agent", needs.agents)}
            loaded.world.usages.stored = stored
        if needs.steps:
            for row in self._rows("steps_by_run", needs.steps):
                step = rows.step(row)
                loaded.world.steps[step.flow_id, step.run_id] = step
        return loaded

    def _load_inbox(self, needs: Needs, loaded: Loaded) -> None:
        """Load the messages known by identity or place."""
        if needs.inbox:
            for row in self._rows("inbox_by_key", needs.inbox, heavy=_RESULT):
                message = rows.inbox(row)
                loaded.inbox[_identity(message)] = message
        taken = {(stream, seq) for stream, seq in needs.places if seq <= self._taken_up_to(stream)}
        if taken:
            for row in self._rows("inbox_by_place", taken, heavy=_RESULT):
                message = rows.inbox(row)
                loaded.places.setdefault(_place(message), []).append(message)

    def _taken_up_to(self, stream: str) -> int:
        """Return the last place that a message of the stream was taken from.

        What lies above it was never seen, and is not looked up.
        """
        last = self._places.get(stream) or self._last.places.get(stream)
        if last is None:
            stored: int | None = self._database.execute(statements("reads")["last_taken"], (stream,)).fetchone()[0]
            self._places[stream] = last = stored or 0
        return last

    def _load_pairs(self, needs: Needs, loaded: Loaded, now: Micros) -> None:
        """Load who waits and waited last for the pairs, their flows, and what is held."""
        world, pairs = loaded.world, needs.pairs | needs.parking
        if not pairs:
            return
        for wait_id, leaf, topic, correlation_id, mode, *flow in self._legible_rows("waiters_by_pair", pairs, heavy=_WAITERS_STATE):
            waiter = Waiter(flow_id=flow[1], wait_id=wait_id, leaf=leaf, topic=topic, correlation_id=correlation_id, mode=mode)
            world.add_waiter(waiter)
            self._add_flow(flow, world)
        unawaited = {pair for pair in needs.pairs if not world.waiting.get(pair)}
        if unawaited:
            for topic, correlation_id, flow_id in self._rows("last_by_pair", unawaited):
                world.last[topic, correlation_id] = flow_id
                needs.flows.add(flow_id)
        if needs.parking:
            self._load_held(needs.parking, loaded, now)

    def _load_followers(self, needs: Needs, loaded: Loaded) -> None:
        """Load who waits for flows to end, and the children of flows.

        Loads as many as may be moved, and counts the others.
        """
        watchers = self._legible_rows("watchers_by_flow", needs.watched, FLOW_ENDS, needs.followers + 1, heavy=_WAITERS_STATE)
        loaded.more_watchers = len(watchers) > needs.followers
        for wait_id, leaf, topic, awaited, mode, *flow in watchers[: needs.followers]:
            loaded.world.add_waiter(Waiter(flow_id=flow[1], wait_id=wait_id, leaf=leaf, topic=topic, correlation_id=awaited, mode=mode))
            self._add_flow(flow, loaded.world)
        if needs.parents:
            loaded.children_left = dict(self._rows("children_counted", needs.parents))
        if loaded.children_left and needs.followers:
            for parent, child in self._rows("children_by_parent", loaded.children_left, needs.followers):
                loaded.world.families[parent].append(child)
                loaded.children_left[parent] -= 1
                needs.flows.add(child)

    def _load_held(self, pairs: Iterable[Any], loaded: Loaded, now: Micros) -> None:
        """Load the oldest held replies of the pairs, in turn.

        The first of each comes first, then more as long as they do not weigh too much.
        """
        queues: dict[Any, list[int]] = {}
        for topic, correlation_id, number in self._rows("held_by_pair", pairs, _HELD_LOOKED_AT):
            queues.setdefault((topic, correlation_id), []).append(number)
        in_turn = sorted((rank, pair, number) for pair, queue in queues.items() for rank, number in enumerate(queue))
        count = weight = 0
        for rank, pair, number in in_turn:
            if weight > _HELD_BYTES or (rank and count >= _HELD_AT_ONCE):
                loaded.more_held.add(pair)
                if not rank:
                    loaded.unseen.add(pair)
                continue
            for row in self._database.execute(self._load["held_by_number"], (number, now)).fetchall():  # none where it has expired
                count, weight = count + 1, weight + len(row[3])
                self._add_held([row], loaded.world)

    def _add_held(self, held_rows: Iterable[Any], world: World) -> None:
        """Add held replies to the world, each once.

        One that cannot be read stays in its row.
        """
        for row in held_rows:
            try:
                held = rows.held(row)
            except rows.UnreadableRow as bad:
                self._log.error("held_reply_passed_over", why=str(bad))
                continue
            if world.held_by_key(held.key) is None:
                world.replies[held.pair].append(held)

    def _load_holdings(self, needs: Needs, holdings: HeldCounts) -> None:
        """Load how many replies are held, and those that the batch may displace."""
        arriving: dict[str, int] = {}
        for (tenant, _), new in needs.holding.items():
            arriving[tenant] = arriving.get(tenant, 0) + new
        for tenant, count in self._rows("held_counts", arriving):
            if tenant is None:
                holdings.total = count
            else:
                holdings.of[tenant] = count
        excess = {tenant: holdings.of.get(tenant, 0) + new - needs.max_held_of_tenant for tenant, new in arriving.items()}
        over = holdings.total + sum(arriving.values()) - needs.max_held
        if over > 0:
            for tenant, count in self._database.execute(self._load["held_most"]):
                holdings.of[tenant] = count
                excess[tenant] = max(excess.get(tenant, 0), over)
        for tenant, number in excess.items():
            if number > 0:
                self._load_topics(tenant, number, needs, holdings)

    def _load_topics(self, tenant: str, number: int, needs: Needs, holdings: HeldCounts) -> None:
        """Load what a tenant that has to make room holds.

        These are its largest topics, those that replies come for, and what expires first.
        """
        most = min(number, AT_ONCE * sum(needs.holding.values()))
        own = {topic: AT_ONCE * new for (owner, topic), new in needs.holding.items() if owner == tenant}
        topics = holdings.topics.setdefault(tenant, {})
        topics.update(self._database.execute(self._load["held_topics_most"], (tenant, _TOPICS_THAT_PAY)).fetchall())
        largest = set(topics)
        topics.update(self._database.execute(self._load["held_topics"], (_json(own), tenant)).fetchall())
        for topic in topics:
            limit = most if topic in largest else min(most, own[topic])
            first = self._database.execute(self._load["held_first"], (tenant, topic, limit))
            holdings.first[tenant, topic] = [rows.held_mark(row) for row in first]

    def _load_flows(self, flow_ids: set[str], world: World) -> None:
        """Load flows by id.

        A row that cannot be read is named in the world, and stops nothing else (SEMANTICS R13).
        """
        wanted = flow_ids - world.flows.keys() - world.unreadable.keys()
        if wanted:
            for row in self._legible_rows("flows_by_id", wanted, heavy=_STATE):
                self._add_flow(row, world)

    def _add_flow(self, row: Sequence[Any], world: World) -> None:
        """Add a flow to the world, once, from its number and its row."""
        number, flow_id = row[0], row[1]
        if flow_id in world.flows or flow_id in world.unreadable:
            return
        self._numbers[flow_id] = number
        try:
            world.flows[flow_id] = flow = rows.flow(row[1:])
        except rows.UnreadableRow as bad:
            world.unreadable[flow_id] = str(bad)
            return
        if flow.cancel_requested:
            self._cancelling[number] = flow_id

    def _load_cancel_reasons(self, world: World) -> None:
        """Load from the journal why cancellations were requested, for the flows' ends."""
        if self._cancelling:
            for number, reason in self._legible_rows("cancel_reasons", self._cancelling):
                world.cancel_reasons[self._cancelling[number]] = reason
            self._cancelling = {}

    def _rows(self, name: str, wanted: Iterable[Any], *more: Any, heavy: int | None = None) -> Sequence[Any]:
        """Run a set-based load for the wanted ids; `heavy`: the column whose bytes count.

        Raises `TooHeavy`.
        """
        ids = _json(wanted)
        if heavy is None:
            return self._database.execute(self._load[name], (ids, *more)).fetchall()
        fetched = fetch(self._database, self._load[name], (ids, *more), self._room, heavy)
        if fetched.cut:
            raise TooHeavy
        self._room -= fetched.weight
        return fetched.rows

    def _legible_rows(self, name: str, wanted: Iterable[Any], *more: Any, heavy: int | None = None) -> Sequence[Any]:
        """Run a set-based load of flows, whose labels may be damaged."""
        try:
            return self._rows(name, wanted, *more, heavy=heavy)
        except sqlite3.OperationalError as bad:
            if "UTF-8" not in str(bad):
                raise
            return self._load_damaged(name, wanted, more, heavy, bad)

    def _load_damaged(
        self, name: str, wanted: Iterable[Any], more: Sequence[Any], heavy: int | None, refused: sqlite3.OperationalError
    ) -> Sequence[Any]:
        """Load again after one damaged label made the driver refuse the whole result.

        Not the first time: it costs on every text.
        """
        traceback.clear_frames(refused.__traceback__)  # its cursor would keep the statement open, and the checkpoint waiting
        self._database.text_factory = rows.legible
        try:
            return self._rows(name, wanted, *more, heavy=heavy)
        finally:
            self._database.text_factory = str


def _json(wanted: Iterable[Any]) -> str:
    return msgspec.json.encode(list(wanted)).decode()


def _identity(row: InboxRow) -> InboxKey:
    return (row.scope or "", row.key or "")


def _place(row: InboxRow) -> Place:
    return (row.source, row.source_seq or 0)
