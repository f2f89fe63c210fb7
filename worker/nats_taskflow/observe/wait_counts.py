"""Count waiting flows by kind and minute. Loaded once, in ranges; then updated from each committed batch.

One query for everything would take seconds where a million flows wait, and an index on the kind would cost a write per wait. While the
ranges are loaded, commits go on. What they change is kept, and added where its range was read before the commit. So the counts are exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from nats_taskflow.store.admin_port import FOREVER, AdminReads, WaitCountsRange
from nats_taskflow.units import SECOND, Micros

PER: Micros = 60 * SECOND
"""How exactly the age of waits is known."""

_RANGE = 2000
"""Flows read at a time: a few milliseconds on the reading connection."""


class WaitCounts:
    """Counts waiting flows by kind and by the minute in which they parked. `known`: the counts are complete."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._changes: list[tuple[int, str, Micros, int]] = []
        self._range_ends: list[Micros] = []
        self._range_events: list[int] = []
        self._last_event = 0
        self.known = False

    def add(self, event: int, kind: str, parked_us: Micros, by: int) -> None:
        """Add `by` waiting flows, as the batch that begins with journal entry `event` did. Called on the hot path."""
        if not self.known:
            self._changes.append((event, kind, parked_us, by))
        elif event > self._last_event or self._is_new(event, parked_us):
            self._change((kind, parked_us // PER), by)

    def _is_new(self, event: int, parked_us: Micros) -> bool:
        """Return whether the range was read before the entry was committed. A commit that was read already may arrive here later."""
        return event > self._range_events[bisect_left(self._range_ends, parked_us)]

    async def load(self, reads: AdminReads) -> None:
        """Count what waits. Raises `Unavailable`; it can be called again then."""
        self._changes.clear()  # they are committed, and will be read; kept, they would grow for as long as nothing can be read
        ranges: list[WaitCountsRange] = []
        while not ranges or ranges[-1].up_to < FOREVER:
            after = ranges[-1].up_to if ranges else -FOREVER
            ranges.append(await reads.waits_counted(after=after, limit=_RANGE, per=PER))
        for loaded in ranges:
            for place, count in loaded.counts.items():
                self._change(place, count)
        self._range_ends, self._range_events = [loaded.up_to for loaded in ranges], [loaded.last_event for loaded in ranges]
        self._last_event, self.known = max(self._range_events), True
        changes, self._changes = self._changes, []
        for change in changes:
            self.add(*change)

    def _change(self, place: tuple[str, int], by: int) -> None:
        """Change one count."""
        count = self._counts.get(place, 0) + by
        if count:
            self._counts[place] = count
        else:
            self._counts.pop(place, None)

    def by_kind(self) -> Mapping[str, tuple[int, Micros]]:
        """Return by kind how many flows wait, and by when the oldest of them had parked."""
        waits: dict[str, tuple[int, Micros]] = {}
        for (kind, minute), count in self._counts.items():
            sum_before, oldest = waits.get(kind, (0, FOREVER))
            waits[kind] = (sum_before + count, min(oldest, (minute + 1) * PER))
        return waits
