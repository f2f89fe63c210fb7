"""Keep house in a transaction: expire, prune, set aside, and note how far the outlets and the attempts have come."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from worker.errors import Conflict, Internal
from worker.flow.ending import due_of
from worker.flow.model import Flow
from worker.store import rows
from worker.store.failures import translated
from worker.store.overview import Intervention
from worker.store.queries import statements
from worker.times import Micros
from worker.wire.outcomes import EXPIRED

Result = TypeVar("Result")


class Upkeep:
    """The housekeeping half of a transaction."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._upkeep = statements("upkeep")
        self._saves = statements("save")
        self._log = structlog.get_logger("store")

    async def _on_thread(self, work: Callable[..., Result], *given: Any) -> Result:
        """Do a piece of work on the connection's own thread, in one go, with SQLite's errors translated.

        A hop to the thread and back costs as much as ten statements; aiosqlite's public calls make one or two for each.
        """
        try:
            done: Result = await self._writer._execute(work, self._writer._conn, *given)  # noqa: SLF001  # see above
        except sqlite3.Error as bad:
            raise translated(bad) from bad
        return done

    async def _fetch(self, sql: str, parameters: Sequence[Any] = ()) -> Sequence[Any]:
        """Run a statement and return its rows."""
        return await self._on_thread(lambda database: database.execute(sql, parameters).fetchall())

    async def _each(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement for all values."""
        await self._on_thread(lambda database: database.executemany(sql, list(values)).close())

    async def expire_held(self, now: Micros, limit: int) -> int:
        """Move expired held replies to the dead letters."""
        # The payload goes as it is stored: one that cannot be read must not keep the others here.
        expired = await self._fetch(self._upkeep["expired_held"], (now, limit))
        letters = []
        for topic, correlation_id, event_id, payload, key in expired:
            found = await self._fetch(self._upkeep["place_of_reply"], (key,))
            stream, seq = found[0] if found else ("", None)
            about = f"nobody waited for ({topic}, {correlation_id}) before the reply expired"
            headers = {"Correlation-Id": correlation_id, "Event-Id": event_id}
            letters.append(("expired", about, topic, stream, seq, rows.text(headers), payload, now))
        keys = [row[4] for row in expired]
        await self._each(self._saves["insert_dead_letter"], letters)
        await self._each(self._saves["delete_held"], [(key,) for key in keys])
        await self._each(self._saves["change_outcome"], [("expired", EXPIRED, key) for key in keys])
        changes = [("inbox.held", -len(expired)), ("inbox.expired", len(expired)), ("held", -len(expired))]
        await self._each(self._saves["count"], changes if expired else [])
        return len(expired)

    async def prune_flows(self, older_than: Micros, limit: int) -> int:
        """Delete ended flows whose events are all published, with everything that hangs on them."""
        found = await self._fetch(self._upkeep["prunable_flows"], (older_than, limit))
        numbers = [(n,) for n, _ in found]
        for name in ("prune_events", "prune_steps", "prune_waiters", "prune_outgoing", "prune_flow"):
            await self._each(self._upkeep[name], numbers)
        await self._each(self._saves["count"], [(f"flows.{status}", -1) for _, status in found])
        return len(found)

    async def prune_inbox(self, source: str, before_seq: int, before: Micros, limit: int) -> int:
        """Forget what the stream forgot. The counters stay: they count messages, not rows."""
        found = await self._fetch(self._upkeep["prunable_inbox"], (source, before_seq, before, limit))
        await self._each(self._upkeep["prune_inbox"], [(n,) for n, _ in found])
        await self._fetch(self._upkeep["forget_purged"], (source, before_seq))
        return len(found)

    async def set_aside(self, flow_id: str, why: str) -> None:
        """Take an unreadable flow out of the timers' way."""
        await self._fetch(self._upkeep["set_aside"], (flow_id, why))

    async def settle_outgoing(self, sent: Sequence[int], later: Sequence[tuple[int, Micros]]) -> None:
        """Forget what was sent; postpone the rest."""
        await self._each(self._upkeep["forget_outgoing"], [(n,) for n in sent])
        await self._each(self._upkeep["postpone_outgoing"], later)

    async def mark_published(self, outlet: str, n: int) -> None:
        """Note how far an outlet has come."""
        await self._fetch(self._upkeep["mark_published"], (outlet, n))

    async def forget_restored(self) -> None:
        """Note that a restored database has caught up."""
        await self._fetch(self._upkeep["forget_restored"])

    async def suspect(self, source: str, above: int, up_to: int) -> dict[int, int]:
        """Note every message in the window that has no outcome yet; what was noted before keeps its count."""
        await self._fetch(self._upkeep["forget_attempts"], (source, above))
        window = (source, above, up_to)
        known = {seq for (seq,) in await self._fetch(self._upkeep["known_places"], window)}
        unknown = [(source, seq) for seq in range(above + 1, up_to + 1) if seq not in known]
        await self._each(self._upkeep["suspect"], unknown)
        counted = await self._fetch(self._upkeep["attempts"], window)
        return {seq: attempts for seq, attempts in counted if seq not in known}

    async def note_attempt(self, source: str, seq: int) -> None:
        """Count one more attempt of a message."""
        await self._fetch(self._upkeep["note_attempt"], (source, seq))

    async def release(self, flow_id: str) -> Flow | None:
        """Read the row again, and let it back among the others."""
        found = await self._fetch(self._upkeep["set_aside_row"], (flow_id,))
        if not found:
            return None
        try:
            flow = rows.flow(found[0][1:])
            due = due_of(flow)
        except (rows.Unreadable, Internal) as bad:
            message = f"flow {flow_id} stays set aside: its row still cannot be read: {bad}"
            raise Conflict(message, flow_id=flow_id) from bad
        await self._fetch(self._upkeep["release"], (found[0][0], due))
        return flow

    async def note_replayed(self, number: int, actor: str, now: Micros) -> bool:
        """Count one more replay of a dead letter."""
        return bool(await self._fetch(self._upkeep["note_replayed"], (number, actor, now)))

    async def purge_letters(self, numbers: Sequence[int]) -> int:
        """Delete dead letters that are published, and keep where they came from."""
        await self._fetch(self._upkeep["note_purged"], (msgspec.json.encode(numbers).decode(),))
        return len(await self._fetch(self._upkeep["purge_letters"], (msgspec.json.encode(numbers).decode(),)))

    async def note_intervention(self, done: Intervention) -> None:
        """Add to what operators did."""
        await self._fetch(self._upkeep["note_intervention"], (done.at_us, done.actor, done.verb, done.about, done.reason))
