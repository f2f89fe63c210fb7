"""Handle deliveries: one flow's one after another, different flows' side by side; keep those in hand alive, put the failed ones off."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from nats_taskflow.client.events import Event
from nats_taskflow.client.transport import ConsumerMessage
from nats_taskflow.tasks import keep, repeat

_REMEMBERED = 100_000
_ACK_WAITS = 2
"""So many times the broker's patience after it was due, an event that is still in the stream has been delivered again."""
_log = logging.getLogger("nats_taskflow.client.agent")


class RetryLater(Exception):
    """The handling failed: try again later."""


class _Lane:
    """One flow's deliveries. `blocked`: the `seq` that failed and has to come before any later one, unless it has not come by `given_up`
    (the loop's time); `tries` counts its failures.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Event, ConsumerMessage]] = deque()
        self.task: asyncio.Task[None] | None = None
        self.blocked = 0
        self.given_up = 0.0
        self.tries = 0


class FlowQueues:
    """The lanes of one loop; `async with` ends their tasks. `handle` raises `RetryLater`, or nothing. Times are seconds.

    What failed is given back to the broker with a delay, from `first` doubling up to `last`, and with it what came behind it in its lane:
    a delivery in hand would be lost to the next process for longer. A lane is empty most of the time, and then forgotten.
    """

    def __init__(self, handle: Callable[[Event], Awaitable[None]], alive_every: float, first: float, last: float) -> None:
        self._handle = handle
        self._alive_every = alive_every
        self._first = first
        self._last = last
        self._lanes: dict[str, _Lane] = {}
        self._done: dict[str, None] = {}
        self._alive: asyncio.Task[None] | None = None
        self._in_hand = asyncio.Event()
        self._finishing = False

    async def __aenter__(self) -> Self:
        self._alive = keep(repeat(self._keep_alive, "keep alive"), "keep alive")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        tasks += [self._alive] if self._alive is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that handle something."""
        return {lane.task for lane in self._lanes.values() if lane.task is not None and not lane.task.done()}

    async def finish(self, late: asyncio.Event) -> None:
        """Let what is being handled come to its end, or end it when it is `late`. Nothing is begun any more, and nothing given back.

        The next reader rewinds, and has all of it in order. Given back, a broker that still has our last request would mix it up.
        """
        self._finishing = True
        over = asyncio.ensure_future(late.wait())
        try:
            while self.tasks and not late.is_set():
                await asyncio.wait({*self.tasks, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        ended = self.tasks
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)

    async def put(self, event: Event, delivery: ConsumerMessage) -> None:
        """Line a delivery up behind those of its flow."""
        lane = self._lanes.setdefault(event.flow_id, _Lane())
        if lane.blocked and event.seq > lane.blocked and not any(one.seq == lane.blocked for one, _ in lane.waiting):
            if asyncio.get_running_loop().time() < lane.given_up:
                await delivery.nak(self._delay(lane.tries))
                return
            _log.warning("event %s:%s failed and never came again: it has left the stream; going on", event.flow_id, lane.blocked)
            lane.blocked = lane.tries = 0
        lane.waiting.append((event, delivery))
        self._in_hand.set()
        if lane.task is None or lane.task.done():
            lane.task = keep(self._work(event.flow_id, lane), "lane")

    async def _work(self, flow_id: str, lane: _Lane) -> None:
        """Handle what is lined up; ends when nothing is."""
        while lane.waiting and not self._finishing:
            event, delivery = lane.waiting[0]
            if event.id not in self._done:
                try:
                    await self._handle(event)
                except RetryLater:
                    await self._put_off(lane, event)
                    continue
                self._remember(event)
                lane.blocked = lane.tries = 0
            await delivery.ack()
            lane.waiting.popleft()
        lane.task = None
        if not lane.blocked:
            del self._lanes[flow_id]

    def _remember(self, event: Event) -> None:
        """Note that an event was handled: it may be delivered again. Each by itself, for one that comes late must not pass for a repeat."""
        self._done[event.id] = None
        if len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]

    async def _put_off(self, lane: _Lane, failed: Event) -> None:
        """Give everything in the lane back to the broker: the failed event first, so that it comes first."""
        lane.blocked, lane.tries = failed.seq, lane.tries + 1
        delay = self._delay(lane.tries)
        lane.given_up = asyncio.get_running_loop().time() + delay + _ACK_WAITS * 3 * self._alive_every
        while lane.waiting:
            _, delivery = lane.waiting.popleft()
            await delivery.nak(delay)

    def _delay(self, tries: int) -> float:
        """Return how long to wait after so many failures."""
        return min(self._first * 2.0 ** min(tries - 1, 30), self._last)

    async def _keep_alive(self) -> None:
        """Tell the broker of everything in hand that it is worked on. An idle agent sleeps."""
        await self._in_hand.wait()
        await asyncio.sleep(self._alive_every)
        if not any(lane.waiting for lane in self._lanes.values()):
            self._in_hand.clear()
        for lane in list(self._lanes.values()):
            for _, delivery in list(lane.waiting):
                await delivery.in_progress()
