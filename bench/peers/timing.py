"""Time a peer that has no broker: park flows, resume all at once, then at a pace; print what it took as JSON."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

Act = Callable[[int], Awaitable[Any]]
SIZE = 300


def payload(number: int) -> dict[str, Any]:
    """Return a reply's payload."""
    return {"n": number, "text": "x" * (SIZE - 50)}


class Resumes:
    """Who was resumed when. `heard` is called where the flow goes on."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def heard(self, number: int) -> None:
        """Note that a flow goes on; from any thread."""
        self.at.setdefault(number, time.perf_counter())
        self._loop.call_soon_threadsafe(self._more.set)

    async def all(self, numbers: range, within: float) -> None:
        """Return when all of them went on."""
        async with asyncio.timeout(within):
            while not all(number in self.at for number in numbers):
                self._more.clear()
                await self._more.wait()


async def timed(resumes: Resumes, park: Act, resume: Act, *, count: int, paced: int, rate: float, at_once: int = 100) -> dict[str, Any]:
    """Park them all, resume `count` at once, the others at `rate`."""
    slots = asyncio.Semaphore(at_once)

    async def bounded(act: Act, number: int) -> None:
        async with slots:
            await act(number)

    await asyncio.gather(*[bounded(park, number) for number in range(count + paced)])
    began = time.perf_counter()
    await asyncio.gather(*[bounded(resume, number) for number in range(count)])
    await resumes.all(range(count), 120)
    took = max(resumes.at[number] for number in range(count)) - began
    sent: dict[int, float] = {}
    going: list[asyncio.Task[None]] = []
    began = time.perf_counter()
    for at, number in enumerate(range(count, count + paced)):
        await asyncio.sleep(max(began + at / rate - time.perf_counter(), 0))
        sent[number] = time.perf_counter()
        going.append(asyncio.ensure_future(bounded(resume, number)))
    await asyncio.gather(*going)
    await resumes.all(range(count, count + paced), 120)
    waited = sorted(resumes.at[number] - sent[number] for number in sent)
    p50, p99 = (1000 * waited[min(int(len(waited) * part), len(waited) - 1)] for part in (0.5, 0.99))
    return {"rate": count / took, "count": count, "p50": p50, "p99": p99, "pace": rate}


def told(figures: dict[str, Any]) -> None:
    """Print the figures, or why there are none."""
    print("\n" + json.dumps(figures), flush=True)
