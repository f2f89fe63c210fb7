"""Answer operators' questions from SQLite.

One index gives the candidates; the other filters leave some of their rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from nats_taskflow.flow.model import Flow, HeldReply, Pair
from nats_taskflow.store.admin_port import (
    LOOK,
    NEWEST,
    DeadLetterFilter,
    DeadLetterGroup,
    FlowFilter,
    Gauges,
    ParkedPage,
    ReceivedReply,
)
from nats_taskflow.store.records import ALL, DeadLetter, Page
from nats_taskflow.store.sqlite import admin_rows, rows
from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.store.sqlite.steps import PAGE_BYTES, FetchedRows
from nats_taskflow.units import Micros
from nats_taskflow.wire.admin_answers import InterventionShown, SetAsideFlow, WaiterShown
from nats_taskflow.wire.admin_letters import LetterShown

CANDIDATES_AT_ONCE = 250
"""How many flows one statement looks at; in between others get the connection."""
ENTRIES_AT_ONCE = 20_000
"""How many entries of an index one statement walks through."""
_DUE_COUNTED = 10_000
_FIRST = (-(2**62), 0)
_FIRST_LETTER, _AFTER_LETTERS = ("", "", 0, 0, 0), (b"", "", 0, 0, 0)  # bytes come after any text
_AFTER_IDS = "~"
Shown = TypeVar("Shown")


class SqliteAdminReads(ABC):
    """The operators' half of the reads; a subclass says how a statement is run."""

    def __init__(self) -> None:
        self._admin_ask = statements("admin_reads")

    @abstractmethod
    async def _run(self, sql: str, parameters: Sequence[Any], room: int = ALL, heavy: int | None = None) -> FetchedRows:
        """Run a statement with SQLite's errors translated; see `steps.fetch`."""

    @abstractmethod
    async def _read(self, sql: str, parameters: Sequence[Any]) -> Sequence[Any]:
        """Run a statement and return all its rows."""

    async def _select(self, name: str, *parameters: Any) -> Sequence[Any]:
        return await self._read(self._admin_ask[name], parameters)

    async def _select_one(self, name: str, *parameters: Any) -> Any | None:
        return next(iter(await self._select(name, *parameters)), None)

    async def _select_page(self, name: str, *parameters: Any, room: int = PAGE_BYTES) -> FetchedRows:
        return await self._run(self._admin_ask[name], parameters, room)

    async def find_flows(self, filters: FlowFilter, *, limit: int, after: int | None = None) -> Page[Flow]:
        """List the flows that pass the filters, newest first."""
        index, value = _choose_index(filters)
        count = sum(value is not None for value in msgspec.structs.astuple(filters))
        look = limit if count == (index is not None) else max(LOOK, limit)  # with no other filter, each candidate matches
        name, more = ("look", ()) if index is None else (f"look_by_{index}", (value,))
        matches, place = await self._filter_candidates(name, (ALL if after is None else after,), more, filters, limit, look)
        return Page(rows=rows.flows([row for _, row in matches]), next=place[-1] if place else None)

    async def parked(self, filters: FlowFilter, *, parked_before: Micros | None, limit: int, after: tuple[int, int] | None) -> ParkedPage:
        """List waiting flows, the longest-waiting first."""
        look = limit if filters == FlowFilter() else max(LOOK, limit)
        until = (ALL if parked_before is None else parked_before,)
        matches, place = await self._filter_candidates("look_parked", after or _FIRST, until, filters, limit, look)
        at = {row[0]: (place[0], place[1]) for place, row in matches}
        flows = [(at[n], flow) for n, flow in rows.flows([row for _, row in matches])]
        return ParkedPage(rows=flows, next=(place[0], place[1]) if place else None)

    async def _filter_candidates(
        self, look: str, start: Sequence[int], more: Sequence[Any], filters: FlowFilter, limit: int, left: int
    ) -> tuple[list[tuple[Sequence[int], Any]], Sequence[int] | None]:
        """Read the flows that match among the next `left` candidates.

        Each comes with its place. Returns also where to go on, if anywhere. It reads a slice at a time: others get the connection in
        between, and nothing is read beyond what fills the page.
        """
        matches: list[tuple[Sequence[int], Any]] = []
        room = PAGE_BYTES
        while limit and left > 0:
            size = min(CANDIDATES_AT_ONCE, left)
            candidates = await self._select(look, *start, size, *more)
            places = {place[-1]: place for place in candidates}
            page = await self._matching(list(places), filters, limit - len(matches), room)
            matches += [(places[row[0]], row) for row in page.rows]
            room -= page.weight
            if page.cut or len(matches) == limit:
                return matches, matches[-1][0]
            if len(candidates) < size:
                return matches, None
            start, left = candidates[-1], left - size
        return matches, start if limit else None

    async def _matching(self, numbers: Sequence[int], filters: FlowFilter, limit: int, room: int) -> FetchedRows:
        """Read the candidates that match all filters, in their order."""
        status = filters.status.value if filters.status else None
        controller = _glob(filters.controller) if filters.controller is not None else None
        values = (status, filters.owner, controller, filters.step, filters.changed_before, filters.topic)
        more = (filters.correlation_id, filters.changed_since, filters.due_by, filters.kind, filters.goal)
        return await self._select_page("find_flows", msgspec.json.encode(numbers).decode(), limit, *values, *more, room=room)

    async def set_aside(self, *, limit: int, after: int | None = None) -> Page[SetAsideFlow]:
        """List the flows that are set aside."""
        return _page(await self._select_page("set_aside", after or 0, limit), limit, admin_rows.set_aside)

    async def set_aside_flow(self, flow_id: str) -> SetAsideFlow | None:
        """Return the flow if it is set aside."""
        row = await self._select_one("set_aside_flow", flow_id)
        return admin_rows.set_aside(row) if row else None

    async def find_ids(self, part: str, limit: int) -> list[str]:
        """List ids that begin or end with a part; see `NEWEST`."""
        ids = [row[0] for row in await self._select("ids_by_prefix", part, limit)]
        above = _AFTER_IDS
        for _ in range(NEWEST // ENTRIES_AT_ONCE):
            last = await self._select("id_before", above, ENTRIES_AT_ONCE - 1)
            start = last[0][0] if last else ""
            ids += [row[0] for row in await self._select("ids_by_suffix", start, above, part, limit)]
            if not last or len(ids) >= 2 * limit:
                break
            above = start
        return list(dict.fromkeys(ids))

    async def waiters(self, topic: str, correlation_id: str | None, limit: int) -> list[WaiterShown]:
        """List open waits."""
        if correlation_id is None:
            waiters = await self._select("waiters_of_topic", topic, limit)
        else:
            waiters = await self._select("waiters_of_pair", topic, correlation_id, limit)
        return [admin_rows.waiter(row) for row in waiters]

    async def awaited_pairs(self, flow_id: str, limit: int) -> list[Pair]:
        """List what a flow waits for or has waited for."""
        return list(dict.fromkeys((topic, pair) for topic, pair in await self._select("awaited_pairs", flow_id, limit)))

    async def held_replies(
        self, *, topic: str | None = None, correlation_id: str | None = None, limit: int, after: int | None = None, payloads: bool = True
    ) -> Page[HeldReply]:
        """List held replies."""
        suffixes = {(True, False): "_of_topic", (False, True): "_of_correlation", (True, True): "_of_pair"}
        name = "held" + suffixes.get((topic is not None, correlation_id is not None), "")
        pair = [value for value in (topic, correlation_id) if value is not None]
        page = await self._select_page(name, after or 0, limit, int(payloads), *pair)
        replies = []
        for row in page.rows:
            try:
                replies.append((row[0], rows.held(row[1:])))
            except rows.UnreadableRow:
                continue
        return Page(rows=replies, next=page.place(limit))

    async def held_reply(self, number: int) -> HeldReply | None:
        """Return a held reply by its number."""
        row = await self._select_one("held_by_number", number)
        return rows.held(row[1:]) if row else None

    async def received_replies(self, pair: Pair, limit: int) -> list[ReceivedReply]:
        """List what came for the pair: its keys lie side by side."""
        start = "".join(f"{part}\n" for part in pair)
        received = await self._select("received_replies", start, f"{start[:-1]}\v", limit)
        return [ReceivedReply(event_id=key[len(start) :], outcome=o, source=s, source_seq=q, at_us=at) for key, o, s, q, at in received]

    async def letter_number(self, stream: str, seq: int) -> int | None:
        """Return the number of the dead letter at a place."""
        row = await self._select_one("letter_number", stream, seq)
        return row[0] if row else None

    async def letter_groups(self, limit: int, before: Micros | None = None) -> list[DeadLetterGroup]:
        """Count by reason and subject, in one index, a slice of it at a time."""
        groups: dict[tuple[str, str], DeadLetterGroup] = {}
        start: Sequence[Any] = _FIRST_LETTER
        while len(groups) <= limit:
            last = await self._select("letter_after", *start, ENTRIES_AT_ONCE - 1)
            end = last[0] if last else _AFTER_LETTERS
            for row in await self._select("letter_groups", *start, *end, before):
                group = DeadLetterGroup(**dict(zip(DeadLetterGroup.__struct_fields__, row, strict=True)))
                key = group.subject, group.reason
                groups[key] = groups[key].plus(group) if key in groups else group
            if not last:
                break
            start = end
        return list(groups.values())[:limit]

    async def letters(
        self, filters: DeadLetterFilter, *, limit: int, after: int | None = None, up_to: int | None = None
    ) -> Page[LetterShown]:
        """List dead letters, oldest first."""
        if filters.numbers is not None:
            letters = await self._select("letters_by_number", msgspec.json.encode(filters.numbers).decode())
            return Page(rows=[(row[0], admin_rows.letter(row)) for row in letters], next=None)
        values = (after or 0, ALL if up_to is None else up_to, filters.subject, filters.before, int(filters.replayed), limit)
        if filters.reason is not None:
            return _page(await self._select_page("letters_by_reason", *values, filters.reason), limit, admin_rows.letter)
        return _page(await self._select_page("letters", *values), limit, admin_rows.letter)

    async def letter(self, number: int) -> LetterShown | None:
        """Return a dead letter with its headers and body."""
        row = await self._select_one("letter", number)
        return admin_rows.whole_letter(row) if row else None

    async def stored_letter(self, number: int) -> DeadLetter | None:
        """Return a dead letter as it came."""
        row = await self._select_one("letter", number)
        return admin_rows.stored_letter(row) if row else None

    async def last_letter(self) -> int:
        """Return the number of the newest dead letter."""
        return int((await self._select("last_letter"))[0][0])

    async def outgoing_of(self, flow_id: str) -> tuple[str, int, Micros] | None:
        """Return a request that was not sent yet."""
        row = await self._select_one("outgoing_of", flow_id)
        return tuple(row) if row else None

    async def interventions(self, *, limit: int, after: int | None = None) -> Page[InterventionShown]:
        """List what operators did."""
        page = await self._select_page("interventions", ALL if after is None else after, limit)
        return _page(page, limit, admin_rows.intervention)

    async def gauges(self, now: Micros) -> Gauges:
        """Read the counters and the ends of indexes."""
        counts = dict(await self._read(statements("reads")["counts"], ()))
        published = {name: (await self._read(statements("reads")["published"], (name,)))[0][0] for name in ("events", "dead_letters")}
        next_due = await self._read(statements("reads")["next_due"], ())
        oldest = await self._select("oldest_parked")
        letters = await self.last_letter()
        outgoing, attempts = (await self._select("count_outgoing"))[0]
        return Gauges(
            counts=counts,
            set_aside=(await self._select("count_set_aside"))[0][0],
            due=(await self._select("count_due", now, _DUE_COUNTED))[0][0],
            next_due=next_due[0][0] if next_due else None,
            oldest_wait=tuple(oldest[0]) if oldest else None,
            unpublished_events=max((await self._select("last_event"))[0][0] - published["events"], 0),
            unpublished_dead_letters=max(letters - published["dead_letters"], 0),
            dead_letters=(await self._select("count_letters"))[0][0],
            outgoing=outgoing,
            outgoing_attempts=attempts,
            epoch=dict(await self._select("meta"))["epoch"],
            most={quota: (agent, used) for quota, agent, used in await self._select("most_used")},
        )


def _choose_index(filters: FlowFilter) -> tuple[str | None, Any]:
    """Choose the filter that is looked up in its index; return it and its value.

    It is the one that leaves fewest flows.
    """
    if filters.topic is not None:
        return "topic", filters.topic
    if filters.owner is not None:
        return "owner", filters.owner
    if filters.controller is not None and "*" not in filters.controller:
        return "controller", filters.controller
    return ("status", filters.status.value) if filters.status is not None else (None, None)


def _glob(pattern: str) -> str:
    # Only `*` stands for other text.
    return "".join(f"[{letter}]" if letter in "?[" else letter for letter in pattern)


def _page(page: FetchedRows, limit: int, shown: Callable[[Any], Shown]) -> Page[Shown]:
    # Each row begins with its position.
    return Page(rows=[(row[0], shown(row)) for row in page.rows], next=page.place(limit))
