"""Event loop time that follows a test's clock, and detection of an idle loop.

The loop's own time goes on beside it, so that a timeout that guards a test against hanging still ends. What the test's clock was moved by
comes on top. So `asyncio.sleep`, `asyncio.timeout` and `loop.call_later` of the code under test follow the clock, and the clock stops at
each of them on its way. The worker's own timers (it polls every few seconds) are apart: there, time stops at what is due in the database
instead, or a month would be two million polls.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from nats_taskflow.units import SECOND, Micros

_OF_WORKER: contextvars.ContextVar[bool] = contextvars.ContextVar("taskflow_of_worker", default=False)
_Timer = tuple[Micros, int, asyncio.TimerHandle]
_REPLACED = ("time", "call_at", "call_later", "run_in_executor")
_TURNS = 100_000
"""Turns of the loop after which the code under test must be in an endless loop."""
_READINGS = 8
"""How many readings of the loop's time are remembered."""


class NeverAtRest(AssertionError):
    """The code under test never comes to rest."""


class LoopTime:
    """The time of one event loop, while it is `installed`.

    `now` returns the clock's time, in microseconds since the epoch.
    """

    def __init__(self, now: Callable[[], Micros]) -> None:
        self._now = now
        self._loop: asyncio.BaseEventLoop
        self._ahead = 0.0
        self._readings: deque[float] = deque(maxlen=_READINGS)
        self._numbers = itertools.count()
        self._timers: dict[bool, list[_Timer]] = {True: [], False: []}
        self._threads: set[asyncio.Future[Any]] = set()
        self._resting = asyncio.Lock()

    def install(self) -> None:
        """Take over the running loop's time.

        Raises `RuntimeError` for a loop that is not asyncio's own, and for one that follows another clock already.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.BaseEventLoop):
            message = f"a virtual clock moves the time of asyncio's own event loop; this test runs on {type(loop).__module__}"
            raise RuntimeError(message)
        if "time" in vars(loop):
            message = "the loop's time already follows another virtual clock: one at a time"
            raise RuntimeError(message)
        self._loop = loop
        for name in _REPLACED:
            setattr(loop, name, getattr(self, f"_{name}"))

    def uninstall(self) -> None:
        """Give the loop its own time back."""
        for name in _REPLACED:
            vars(self._loop).pop(name, None)

    def move(self, by: Micros) -> None:
        """Move the loop's time forward by microseconds."""
        self._ahead += by / SECOND

    async def rest(self) -> None:
        """Return when the loop is idle.

        Then nothing runs before time passes or something comes from outside. Raises `NeverAtRest` where that is never the case.
        """
        async with self._resting:  # two at once would keep each other's loop busy for ever
            for _ in range(_TURNS):
                await asyncio.sleep(0)
                if self._threads:
                    await asyncio.wait(set(self._threads))
                elif not self._loop._ready and not self._overdue():  # type: ignore[attr-defined]  # noqa: SLF001  # nothing public says it
                    return
        message = "the code under test keeps running without ever waiting for anything; settled() waits for it in vain"
        raise NeverAtRest(message)

    def next_timer(self, *, of_worker: bool = False) -> Micros | None:
        """Return when, by the clock, the next timer fires: of the code under test.

        `of_worker`: of the worker instead. None where no timer is set.
        """
        timers = self._timers[of_worker]
        while timers and (timers[0][2].cancelled() or timers[0][2].when() <= self._loop.time()):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def _overdue(self) -> bool:
        """Check whether a timer fires in the next turn of the loop.

        Where rounding leaves the loop's time just short of a timer that the clock has reached, the loop's time moves on to it.
        """
        for timers in self._timers.values():
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if timers and timers[0][0] <= self._now():
                self._ahead += max(heapq.heappop(timers)[2].when() - self._loop.time(), 0.0)
                return True
        return False

    def _time(self) -> float:
        reading = type(self._loop).time(self._loop) + self._ahead
        self._readings.append(reading)
        return reading

    def _call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        return self._timer(delay, self._loop.time() + delay, callback, args, context)

    def _call_at(self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        """Set a timer for a time of the loop.

        Assumes a delay of whole milliseconds since one of the last readings of the loop's time: on a busy machine it has moved on since
        then.
        """
        self._loop.time()
        delay = min((when - reading for reading in self._readings), key=lambda one: abs(one - round(one, 3)))
        return self._timer(round(delay, 3), when, callback, args, context)

    def _timer(
        self, delay: float, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> asyncio.TimerHandle:
        """Set a timer; record when it fires by the clock, and whose it is."""
        handle = type(self._loop).call_at(self._loop, when, callback, *args, context=context)
        of_worker = context.get(_OF_WORKER, False) if context is not None else _OF_WORKER.get()
        due = self._now() + max(round(delay * SECOND), 0)
        heapq.heappush(self._timers[of_worker], (due, next(self._numbers), handle))
        return handle

    def _run_in_executor(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Record work handed to a thread: the loop is not idle before it is back."""
        future: asyncio.Future[Any] = type(self._loop).run_in_executor(self._loop, executor, function, *args)
        self._threads.add(future)
        future.add_done_callback(self._threads.discard)
        return future


def of_worker() -> contextvars.Context:
    """Return a context in which timers are the worker's own."""
    context = contextvars.copy_context()
    context.run(_OF_WORKER.set, True)  # noqa: FBT003  the variable's value
    return context
