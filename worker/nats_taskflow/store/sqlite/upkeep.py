"""Maintain the database in a transaction: expire, prune, release.

It also notes how far outlets and attempts have come.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import structlog

from nats_taskflow.errors import Conflict, Internal
from nats_taskflow.flow.end import due_of
from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.admin_port import LoggedIntervention
from nats_taskflow.store.records import Suspects
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.units import Micros
from nats_taskflow.wire.headers import CORRELATION_ID, EVENT_ID
from nats_taskflow.wire.outcomes import EXPIRED


class Upkeep:
    """The maintenance half of a transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._upkeep = statements("upkeep")
        self._saves = statements("save")
        self._log = structlog.get_logger("store")

    def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Any]:
        return self._database.execute(sql, parameters).fetchall()

    def _each(self, sql: str, values: Collection[Sequence[Any]]) -> int:
        return self._database.executemany(sql, values).rowcount if values else 0

    def expire_held(self, now: Micros, limit: int) -> int:
        """Move expired held replies to the dead letters."""
        # The payload is moved as it is stored: one that cannot be read must not keep the others here.
        expired = self._fetch(self._upkeep["expired_held"], (now, limit))
        letters = []
        for topic, correlation_id, event_id, payload, key in expired:
            places = self._fetch(self._upkeep["place_of_reply"], (key,))
            stream, seq = places[0] if places else ("", None)
            about = f"nobody waited for ({topic}, {correlation_id}) before the reply expired"
            headers = {CORRELATION_ID: correlation_id, EVENT_ID: event_id}
            letters.append(("expired", about, topic, stream, seq, rows.text(headers), payload, now))
        keys = [row[4] for row in expired]
        self._each(self._saves["insert_dead_letter"], letters)
        self._each(self._saves["delete_held"], [(key,) for key in keys])
        self._each(self._saves["change_outcome"], [("expired", EXPIRED, key) for key in keys])
        changes = [("inbox.held", -len(expired)), ("inbox.expired", len(expired)), ("held", -len(expired))]
        self._each(self._saves["count"], changes if expired else [])
        return len(expired)

    def prune_flows(self, older_than: Micros, limit: int) -> int:
        """Delete ended flows whose events are all published, and all their rows."""
        flows = self._fetch(self._upkeep["prunable_flows"], (older_than, limit))
        numbers = [(n,) for n, *_ in flows]
        for name in ("bury_flow", "prune_events", "prune_steps", "prune_waiters", "prune_outgoing", "prune_flow"):
            self._each(self._upkeep[name], numbers)
        self._each(self._saves["count"], [(f"flows.{status}", -1) for _, status, *_ in flows])
        freed = [(agent, 0, -size) for _, _, owner, size in flows if (agent := agent_of(owner)) is not None]
        self._each(self._saves["count_usage"], freed)
        self._each(self._upkeep["forget_usage"], {(agent,) for agent, *_ in freed})
        return len(flows)

    def prune_tombstones(self, before: Micros, limit: int) -> int:
        """Forget ids whose events the stream no longer keeps."""
        return self._database.execute(self._upkeep["prune_tombstones"], (before, limit)).rowcount

    def prune_inbox(self, source: str, before_seq: int, before: Micros, limit: int) -> int:
        """Forget messages that the stream no longer keeps.

        The counters stay: they count messages, not rows.
        """
        messages = self._fetch(self._upkeep["prunable_inbox"], (source, before_seq, before, limit))
        self._each(self._upkeep["prune_inbox"], [(n,) for n, _ in messages])
        self._fetch(self._upkeep["forget_purged"], (source, before_seq))
        return len(messages)

    def settle_outgoing(self, sent: Sequence[tuple[int, int, Micros]], later: Sequence[tuple[int, Micros]]) -> None:
        """Forget what was sent; postpone the rest."""
        self._each(self._upkeep["forget_notices"], [(n,) for n, _, _ in sent])
        self._each(self._upkeep["note_sent"], sent)
        self._each(self._upkeep["postpone_outgoing"], later)

    def mark_published(self, outlet: str, n: int) -> None:
        """Note how far an outlet has come."""
        self._fetch(self._upkeep["mark_published"], (outlet, n))

    def forget_restored(self) -> None:
        """Note that a restored database has caught up."""
        self._fetch(self._upkeep["forget_restored"])

    def suspects(self, source: str, above: int, up_to: int, born: str, *, replies: bool) -> Suspects:
        """Return the messages in the window that may have been begun."""
        self._fetch(self._upkeep["forget_attempts"], (source, born))
        self._fetch(self._upkeep["note_born"], (source, born))
        known = {seq for (seq,) in self._fetch(self._upkeep["known_places"], (source, above, up_to, replies))}
        counts = dict(self._fetch(self._upkeep["attempts"], (source, above, up_to)))
        return Suspects(above=above, up_to=up_to, known=known, counts=counts)

    def note_attempts(self, places: Sequence[tuple[str, int]]) -> None:
        """Count one more attempt of each suspect."""
        self._each(self._upkeep["note_attempt"], places)

    def release(self, flow_id: str) -> Flow | None:
        """Read the row again, and let time and replies reach the flow."""
        stored = self._fetch(self._upkeep["set_aside_row"], (flow_id,))
        if not stored:
            return None
        try:
            flow = rows.flow(stored[0][1:])
            due = due_of(flow)
        except (rows.UnreadableRow, Internal) as bad:
            message = f"flow {flow_id} stays set aside: its row still cannot be read: {bad}"
            raise Conflict(message, flow_id=flow_id) from bad
        self._fetch(self._upkeep["release"], (stored[0][0], due))
        return flow

    def note_replayed(self, number: int, actor: str, now: Micros) -> bool:
        """Count one more replay of a dead letter."""
        return bool(self._fetch(self._upkeep["note_replayed"], (number, actor, now)))

    def purge_letters(self, numbers: Sequence[int]) -> int:
        """Delete dead letters that are published, but keep the places they came from."""
        self._fetch(self._upkeep["note_purged"], (msgspec.json.encode(numbers).decode(),))
        return len(self._fetch(self._upkeep["purge_letters"], (msgspec.json.encode(numbers).decode(),)))

    def note_intervention(self, done: LoggedIntervention) -> None:
        """Add to what operators did."""
        self._fetch(self._upkeep["note_intervention"], (done.at_us, done.actor, done.verb, done.about, done.reason))
