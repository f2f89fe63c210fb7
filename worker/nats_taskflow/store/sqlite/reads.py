"""Answer questions on a connection that cannot write.

Each statement stands alone, so that no read holds a snapshot for long.
"""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from nats_taskflow.errors import Internal
from nats_taskflow.flow.conditions import FLOW_ENDS
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.store.records import ALL, DeadLetter, DueFlow, DueFlows, DueOutgoing, InboxRow, NumberedEvent, Page, UnfinishedEnd
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.admin_reads import SqliteAdminReads
from nats_taskflow.store.sqlite.errors import translate_errors
from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.store.sqlite.steps import PAGE_BYTES, FetchedRows
from nats_taskflow.units import Micros

_TURNS_AMONG = 2500
"""How many rows that are due, the first and the last, agents take turns among. To look at one costs a hundredth of acting on it."""


class SqliteReads(SqliteAdminReads):
    """The reading half of the store; a subclass says on which connection."""

    def __init__(self) -> None:
        super().__init__()
        self._ask = statements("reads")

    @abstractmethod
    async def _fetch(self, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None) -> FetchedRows:
        """Run a statement on the reading connection; see `steps.fetch`."""

    async def _rows(self, name: str, *parameters: Any) -> Sequence[Any]:
        return await self._read(self._ask[name], parameters)

    async def _row(self, name: str, *parameters: Any) -> Any | None:
        return next(iter(await self._rows(name, *parameters)), None)

    async def _read(self, sql: str, parameters: Sequence[Any]) -> Sequence[Any]:
        return (await self._run(sql, parameters)).rows

    async def _page(self, name: str, *parameters: Any, heavy: int | None = None) -> FetchedRows:
        # `heavy`: the column that has the rows' weight.
        return await self._run(self._ask[name], parameters, PAGE_BYTES, heavy)

    async def _run(self, sql: str, parameters: Sequence[Any], room: int = ALL, heavy: int | None = None) -> FetchedRows:
        """Run a statement, with SQLite's errors translated."""
        try:
            return await self._fetch(sql, parameters, room, heavy)
        except sqlite3.Error as bad:
            raise translate_errors(bad) from bad

    async def get(self, flow_id: str) -> Flow | None:
        """Return the flow, or None."""
        row = await self._row("get_flow", flow_id)
        try:
            return rows.flow(row[1:]) if row else None
        except rows.UnreadableRow as bad:
            message = f"the stored row of flow {flow_id} cannot be read: {bad}"
            raise Internal(message, flow_id=flow_id) from bad

    async def list_flows(
        self, *, owner: str | None = None, status: FlowStatus | None = None, limit: int, after: int | None = None
    ) -> Page[Flow]:
        """List flows, newest first; rows that cannot be read are left out.

        They are reported where they are set aside.
        """
        filters = [("owner", owner), ("status", status.value if status else None)]
        named = [(name, value) for name, value in filters if value is not None]
        name = "list_flows" + ("_by_" + "_and_".join(name for name, _ in named) if named else "")
        page = await self._page(name, ALL if after is None else after, limit, *(value for _, value in named))
        return Page(rows=rows.flows(page.rows), next=page.place(limit))

    async def list_steps(self, flow_id: str, *, limit: int = ALL, after: int | None = None) -> Page[FlowStep]:
        """List the observed runs of a flow."""
        page = await self._page("list_steps", flow_id, after or 0, limit)
        return Page(rows=[(row[0], rows.step(row[1:])) for row in page.rows], next=page.place(limit))

    async def get_step(self, flow_id: str, run_id: str) -> FlowStep | None:
        """Return an observed run, or None."""
        row = await self._row("get_step", flow_id, run_id)
        return rows.step(row[1:]) if row else None

    async def list_events(self, flow_id: str, *, limit: int, after: int | None = None, newest: bool = False) -> Page[FlowEvent]:
        """List journal entries, in either order."""
        name, start = ("list_newest_events", ALL) if newest else ("list_events", 0)
        page = await self._page(name, flow_id, start if after is None else after, limit)
        return Page(rows=[(row[1], rows.event(row)) for row in page.rows], next=page.place(limit, at=1))

    async def outcome(self, scope: str, key: str) -> InboxRow | None:
        """Return what became of a message, or None."""
        row = await self._row("outcome", scope, key)
        return rows.inbox(row) if row else None

    async def due(self, now: Micros, limit: int, decided: Micros | None = None) -> DueFlows:
        """List the flows due by `now`.

        It is an index look-up, whatever the number of waiting flows.
        """
        until = now if decided is None else decided
        (_, held_back, waiting, _, _), *due = await self._rows("due", now, limit, until, FLOW_ENDS, _TURNS_AMONG)
        flows = [DueFlow(flow_id=row[1], wait_id=row[2], due_us=row[3]) for row in due if row[0] == 1]
        ends = [UnfinishedEnd(flow_id=row[1], cascade=bool(row[2]), trace=row[4]) for row in due if row[0] != 1]
        return DueFlows(waiting=waiting, flows=flows, held_back=bool(held_back), ends=ends)

    async def next_due(self) -> Micros | None:
        """Return when the next flow is due, or None."""
        row = await self._row("next_due")
        return row[0] if row else None

    async def counts(self) -> dict[str, int]:
        """Return the maintained counters."""
        return dict(await self._rows("counts"))

    async def unpublished_events(self, after: int, limit: int) -> list[NumberedEvent]:
        """List journal entries above `after`, in the order they were committed."""
        page = await self._page("unpublished_events", after, limit, heavy=7)
        return [
            NumberedEvent(n=row[0], controller_id=row[1], owner_session_key=row[2], flow_id=row[3], event=rows.maybe_event(row[3:]))
            for row in page.rows
        ]

    async def unpublished_dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """List dead letters above `after`, in order."""
        page = await self._page("unpublished_dead_letters", after, limit, heavy=7)
        return [rows.dead_letter(row) for row in page.rows]

    async def outgoing_due(self, now: Micros, limit: int) -> list[DueOutgoing]:
        """List the messages to delegates that are due."""
        page = await self._page("outgoing_due", now, limit, _TURNS_AMONG, heavy=8)
        return [DueOutgoing(n=row[0], attempts=row[1], nonce=row[2], message=rows.outgoing(row[3:])) for row in page.rows]

    async def next_outgoing(self) -> Micros | None:
        """Return when the next message to a delegate is due."""
        row = await self._row("next_outgoing")
        return row[0] if row else None

    async def published(self, outlet: str) -> int:
        """Return up to which row the outlet is published."""
        return int((await self._rows("published", outlet))[0][0])

    async def was_restored(self) -> bool:
        """Return whether this is a copy whose worker has not caught up yet."""
        return bool(await self._rows("was_restored"))

    async def is_taken(self, source: str, seq: int) -> bool:
        """Return whether a message was taken in from this place."""
        return bool(await self._rows("is_taken", source, seq))

    async def last_taken_of(self, source: str, *, replies: bool) -> int | None:
        """Return the highest sequence that a reply, or a command, was taken from."""
        row = await self._row("last_taken_of", source, replies)
        return row[0] if row else None

    async def last_taken(self, source: str) -> int | None:
        """Return the highest sequence of the stream that was taken in."""
        row = await self._row("last_taken", source)
        return row[0] if row else None

    async def first_not_taken(self, source: str, start: int) -> int:
        """Return the lowest sequence of the stream, from `start` on, that was not."""
        return int((await self._rows("first_not_taken", source, start))[0][0])

    async def oldest_unpublished(self) -> Micros | None:
        """Return when the oldest row was committed that is not published."""
        row = await self._row("oldest_unpublished")
        return row[0] if row else None

    async def ping(self) -> None:
        """Answer, or raise."""
        await self._rows("ping")

    async def room(self) -> Mapping[str, int]:
        """Return nothing: how much room is left matters only to the one who writes."""
        return {}
