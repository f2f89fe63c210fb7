"""Let in what waits, one of each name in turn.

Whoever has much waiting delays nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Generic, NamedTuple, TypeVar

from nats_taskflow.futures import new_future

Item = TypeVar("Item")
_ANY = 2**62


class AdmissionBounds(NamedTuple):
    """How much may be inside at a time: so many, which weigh so many bytes together.

    What is heavier than that comes in alone.
    """

    places: int
    weight: int = _ANY


class _Load:
    """How much is inside."""

    __slots__ = ("count", "weight")

    def __init__(self) -> None:
        self.count = self.weight = 0

    def has_room(self, weight: int, share: AdmissionBounds) -> bool:
        """Tell whether one more that weighs so much may come in."""
        return self.count == 0 or (self.count < share.places and self.weight + weight <= share.weight)


class FairAdmission(Generic[Item]):
    """Lets items in while there is room, in all and for each name.

    `total` bounds them all, `each` those of one name.

    `let_in` is called with each, of one name in their order. `waiting`: how many bytes wait.
    """

    def __init__(self, total: AdmissionBounds, each: AdmissionBounds, let_in: Callable[[Item], object]) -> None:
        self._total = total
        self._each = each
        self._let_in = let_in
        self._lines: dict[str, deque[tuple[Item, int]]] = {}
        self._weights: dict[str, int] = {}
        self._inside: dict[str, _Load] = {}
        self._all = _Load()
        self.waiting = 0

    def enter(self, name: str, item: Item, weight: int = 0) -> None:
        """Let the item in when it is its turn, which may be now."""
        self._lines.setdefault(name, deque()).append((item, weight))
        self._weights[name] = self._weights.get(name, 0) + weight
        self.waiting += weight
        self._turn()

    def leave(self, name: str, weight: int = 0) -> None:
        """Make room: one that was let in has gone."""
        mine = self._inside[name]
        for load in (mine, self._all):
            load.count -= 1
            load.weight -= weight
        if not mine.count:
            del self._inside[name]
        self._turn()

    def take_back(self) -> Item:
        """Return the item that came last of the name with most waiting.

        Something must wait.
        """
        name = max(self._weights, key=self._weights.__getitem__)
        return self._taken(name, self._lines[name].pop)

    def _turn(self) -> None:
        """Let in what there is room for; whoever was served goes to the end."""
        while (name := self._next()) is not None:
            line = self._lines[name]
            weight = line[0][1]
            for load in (self._all, self._inside.setdefault(name, _Load())):
                load.count += 1
                load.weight += weight
            item = self._taken(name, line.popleft)
            if line:
                self._lines[name] = self._lines.pop(name)
            self._let_in(item)

    def _next(self) -> str | None:
        """Return whose turn it is, None while there is no room.

        Whoever has a full share is passed over.
        """
        for name, line in self._lines.items():
            weight = line[0][1]
            mine = self._inside.get(name)
            if mine is None or mine.has_room(weight, self._each):
                return name if self._all.has_room(weight, self._total) else None
        return None

    def _taken(self, name: str, take: Callable[[], tuple[Item, int]]) -> Item:
        """Take an item out of a line."""
        item, weight = take()
        self.waiting -= weight
        self._weights[name] -= weight
        if not self._lines[name]:
            del self._lines[name], self._weights[name]
        return item


class FairTurns:
    """Turns to do something, one of each name in turn.

    Within `total` at a time, and of one name within `each`.
    """

    def __init__(self, total: AdmissionBounds, each: AdmissionBounds) -> None:
        self._turnstile: FairAdmission[tuple[str, asyncio.Future[None], int]] = FairAdmission(total, each, self._let_in)

    @asynccontextmanager
    async def of(self, name: str, weight: int = 0) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the end."""
        turn: asyncio.Future[None] = new_future()
        self._turnstile.enter(name, (name, turn, weight), weight)
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._turnstile.leave(name, weight)

    @asynccontextmanager
    async def on_demand(self, name: str, weight: int = 0) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Give a function that waits for a turn, once.

        If it was called, the turn is over at the end.
        """
        async with AsyncExitStack() as taken:

            async def turn() -> None:
                await taken.enter_async_context(self.of(name, weight))

            yield turn

    def _let_in(self, item: tuple[str, asyncio.Future[None], int]) -> None:
        """Tell whoever waits; it may be gone."""
        name, turn, weight = item
        if turn.done():
            self._turnstile.leave(name, weight)
        else:
            turn.set_result(None)
