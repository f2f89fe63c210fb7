"""A flood of requests costs its neighbours nothing but a look at each of it (RELIABILITY 9)."""

from __future__ import annotations

import asyncio
from collections import Counter

from nats_taskflow.bus.admission import BUSY, CALLER_BOUNDS, REFUSALS_WAITING_MAX, REQUEST_OVERHEAD, WAITING_BYTES_MAX, Admission
from nats_taskflow.bus.endpoints import ServiceRequest
from nats_taskflow.wire.headers import Headers
from tests.eventually import eventually

LIMIT = CALLER_BOUNDS.places + WAITING_BYTES_MAX // REQUEST_OVERHEAD
"""So many small requests of one agent are in hand, or wait."""


class Flooded:
    """An admission whose handler and whose answers stand still until they are released."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.told: list[bytes] = []
        self.goes_on, self.leaves = asyncio.Event(), asyncio.Event()
        self.admission = Admission(self._handle, lambda subject: subject.split(".")[2])

    async def _handle(self, request: ServiceRequest) -> None:
        self.begun[request.subject.split(".")[2]] += 1
        await self.goes_on.wait()

    async def _answer(self, body: bytes, _: Headers) -> None:
        await self.leaves.wait()
        self.told.append(body)

    def ask(self, agent: str, times: int) -> None:
        for _ in range(times):
            self.admission.put(ServiceRequest(subject=f"taskflow.api.{agent}.status", headers={}, body=b"", answer=self._answer))


async def test_what_is_refused_in_a_flood_takes_no_task_and_stands_before_nobody() -> None:
    flooded, before = Flooded(), len(asyncio.all_tasks())
    flooded.ask("mallory", LIMIT + 5 * REFUSALS_WAITING_MAX)
    flooded.ask("kate", 1)
    await eventually(lambda: flooded.begun["kate"])
    assert flooded.begun["mallory"] == CALLER_BOUNDS.places
    assert flooded.admission.refused == 5 * REFUSALS_WAITING_MAX
    assert len(asyncio.all_tasks()) - before == CALLER_BOUNDS.places + 1 + 1, "one for each in hand, and one that tells all who are refused"
    flooded.leaves.set()
    await eventually(lambda: len(flooded.told) >= REFUSALS_WAITING_MAX)
    assert set(flooded.told) == {BUSY[0]}
    flooded.goes_on.set()
    await flooded.admission.finish()
    assert len(flooded.told) == REFUSALS_WAITING_MAX + LIMIT - CALLER_BOUNDS.places, (
        "those that do not wait to be told are not; at the stop, all are"
    )


async def test_who_is_refused_after_a_flood_is_told_as_well() -> None:
    flooded = Flooded()
    flooded.leaves.set()
    flooded.ask("mallory", LIMIT + 1)
    await eventually(lambda: len(flooded.told) == 1)
    flooded.ask("mallory", 1)
    await eventually(lambda: len(flooded.told) == 1 + 1)
    flooded.goes_on.set()
    await flooded.admission.finish()
