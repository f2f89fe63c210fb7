"""Know how many flows wait for what, and since when: counted once, a stretch at a time, and from then on kept up with each commit.

A query for all of it would take seconds where a million flows wait, an index on the kind a write for each wait. While the stretches are
counted, commits go on: what they did is kept, and added where the stretch it belongs to was counted before. So the numbers are exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from nats_taskflow.store.admin_port import FOREVER, AdminReads, WaitCountsRange
from nats_taskflow.units import SECOND, Micros

PER: Micros = 60 * SECOND
"""To how much the age of waits is known."""

_STRETCH = 2000
"""Flows counted at a time: some milliseconds on the reading connection."""


class WaitCounts:
    """Counts waiting flows by kind and by the minute in which they parked. `known`: the count is complete."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._moves: list[tuple[int, str, Micros, int]] = []
        self._ends: list[Micros] = []
        self._lasts: list[int] = []
        self._last = 0
        self.known = False

    def moved(self, event: int, kind: str, parked_us: Micros, by: int) -> None:
        """Note that `by` flows more wait, by the journal entry `event`; called on the hot path."""
        if not self.known:
            self._moves.append((event, kind, parked_us, by))
        elif event > self._last or self._is_new(event, parked_us):
            self._add((kind, parked_us // PER), by)

    def _is_new(self, event: int, parked_us: Micros) -> bool:
        """Tell whether the stretch was counted before the entry was there. Also a commit that was counted may be heard of later."""
        return event > self._lasts[bisect_left(self._ends, parked_us)]

    async def take(self, reads: AdminReads) -> None:
        """Count what waits. Raises `Unavailable`; then it can be done again."""
        self._moves.clear()  # what is heard of by now is committed, and counted: where nothing can be read they would be more and more
        stretches: list[WaitCountsRange] = []
        while not stretches or stretches[-1].up_to < FOREVER:
            after = stretches[-1].up_to if stretches else -FOREVER
            stretches.append(await reads.waits_counted(after=after, limit=_STRETCH, per=PER))
        for stretch in stretches:
            for place, count in stretch.counts.items():
                self._add(place, count)
        self._ends, self._lasts = [stretch.up_to for stretch in stretches], [stretch.last_event for stretch in stretches]
        self._last, self.known = max(self._lasts), True
        moves, self._moves = self._moves, []
        for move in moves:
            self.moved(*move)

    def _add(self, place: tuple[str, int], by: int) -> None:
        """Add to one count."""
        count = self._counts.get(place, 0) + by
        if count:
            self._counts[place] = count
        else:
            self._counts.pop(place, None)

    def waiting(self) -> Mapping[str, tuple[int, Micros]]:
        """Return by kind how many flows wait, and by when the first of them had parked."""
        found: dict[str, tuple[int, Micros]] = {}
        for (kind, minute), count in self._counts.items():
            there, first = found.get(kind, (0, FOREVER))
            found[kind] = (there + count, min(first, (minute + 1) * PER))
        return found
