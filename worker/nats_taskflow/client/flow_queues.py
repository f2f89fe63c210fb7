"""Handle each flow's deliveries in order, those of different flows side by side.

What is in hand is kept alive at the broker; what failed is retried.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from nats_taskflow.client.events import Event
from nats_taskflow.client.transport import ConsumerMessage
from nats_taskflow.tasks import keep, repeat

_EVENTS_REMEMBERED = 100_000
_ACK_WAITS = 2
"""Ack waits after which an event that was due again has come, or is no longer in the stream."""
_log = logging.getLogger("nats_taskflow.client.agent")


class RetryLater(Exception):
    """The handling failed: try again later."""


class _FlowQueue:
    """One flow's deliveries.

    `blocked`: the `seq` that failed, and that has to come before any later one until `given_up` (the loop's time); `tries` counts its
    failures.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Event, ConsumerMessage]] = deque()
        self.task: asyncio.Task[None] | None = None
        self.blocked = 0
        self.given_up = 0.0
        self.tries = 0


class FlowQueues:
    """The queues of one loop, one for each flow; `async with` ends their tasks.

    `handle` raises `RetryLater` or nothing. Times are seconds. What failed goes back to the broker with a delay, doubling from `first` up
    to `last`. What came behind it in its queue goes back too: the next process would wait longer for deliveries that this one keeps in
    hand. A queue is empty most of the time, and then forgotten.
    """

    def __init__(self, handle: Callable[[Event], Awaitable[None]], alive_every: float, first: float, last: float) -> None:
        self._handle = handle
        self._alive_every = alive_every
        self._first = first
        self._last = last
        self._queues: dict[str, _FlowQueue] = {}
        self._done: dict[str, None] = {}
        self._alive: asyncio.Task[None] | None = None
        self._in_hand = asyncio.Event()
        self._finishing = False

    async def __aenter__(self) -> Self:
        self._alive = keep(repeat(self._keep_alive, "keep alive"), "keep alive")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        tasks += [self._alive] if self._alive is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that handle something."""
        return {queue.task for queue in self._queues.values() if queue.task is not None and not queue.task.done()}

    async def finish(self, late: asyncio.Event) -> None:
        """Wait for the handlers that run, or cancel them when it is `late`.

        Nothing new begins, and nothing goes back to the broker. The next reader rewinds, and gets everything in order. A broker that still
        has our last pull request would deliver to us what we give back.
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
        """Append a delivery to its flow's queue."""
        queue = self._queues.setdefault(event.flow_id, _FlowQueue())
        if queue.blocked and event.seq > queue.blocked and not any(waiting.seq == queue.blocked for waiting, _ in queue.waiting):
            if asyncio.get_running_loop().time() < queue.given_up:
                await delivery.nak(self._delay(queue.tries))
                return
            _log.warning("event %s:%s failed and never came again: it has left the stream; going on", event.flow_id, queue.blocked)
            queue.blocked = queue.tries = 0
        queue.waiting.append((event, delivery))
        self._in_hand.set()
        if queue.task is None or queue.task.done():
            queue.task = keep(self._work(event.flow_id, queue), "flow queue")

    async def _work(self, flow_id: str, queue: _FlowQueue) -> None:
        """Handle a flow's queue until it is empty."""
        while queue.waiting and not self._finishing:
            event, delivery = queue.waiting[0]
            if event.id not in self._done:
                try:
                    await self._handle(event)
                except RetryLater:
                    await self._give_back(queue, event)
                    continue
                self._remember(event)
                queue.blocked = queue.tries = 0
            await delivery.ack()
            queue.waiting.popleft()
        queue.task = None
        if not queue.blocked:
            del self._queues[flow_id]

    def _remember(self, event: Event) -> None:
        """Remember a handled event, which may be delivered again.

        By its own id: a late one must not pass for a repeat.
        """
        self._done[event.id] = None
        if len(self._done) > _EVENTS_REMEMBERED:
            del self._done[next(iter(self._done))]

    async def _give_back(self, queue: _FlowQueue, failed: Event) -> None:
        """Return the whole queue to the broker, beginning with the failed event.

        So it is delivered first again.
        """
        queue.blocked, queue.tries = failed.seq, queue.tries + 1
        delay = self._delay(queue.tries)
        queue.given_up = asyncio.get_running_loop().time() + delay + _ACK_WAITS * 3 * self._alive_every
        while queue.waiting:
            _, delivery = queue.waiting.popleft()
            await delivery.nak(delay)

    def _delay(self, tries: int) -> float:
        return min(self._first * 2.0 ** min(tries - 1, 30), self._last)

    async def _keep_alive(self) -> None:
        """Reset the broker's redelivery timers of what is in hand.

        An idle agent sleeps.
        """
        await self._in_hand.wait()
        await asyncio.sleep(self._alive_every)
        if not any(queue.waiting for queue in self._queues.values()):
            self._in_hand.clear()
        for queue in list(self._queues.values()):
            for _, delivery in list(queue.waiting):
                await delivery.in_progress()
