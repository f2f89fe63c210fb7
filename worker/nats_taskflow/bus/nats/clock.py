"""Measure the broker's clock: most answers of the JetStream API carry its time."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from datetime import datetime

import msgspec

from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.units import Micros, to_micros

_GRAIN: Micros = 20_000
"""Clocks under NTP always differ by some milliseconds; that must not move the offset."""


class ClockOffset:
    """How far the broker's clock is ahead of ours, in microseconds.

    It changes only by more than a measurement's error.
    """

    def __init__(self) -> None:
        self.value: Micros = 0

    async def read(self, request: Awaitable[bytes]) -> Json:
        """Await an answer, measure by the time in it, and return it.

        Raises what msgspec raises where the answer is no JSON object.
        """
        before = time.time_ns() // 1000
        raw = await request
        after = time.time_ns() // 1000
        answer: Json = msgspec.json.decode(raw, type=Json)
        if isinstance(answer.get("ts"), str):
            self.adjust(to_micros(msgspec.convert(answer["ts"], datetime)), before, after)
        return answer

    def adjust(self, theirs: Micros, before: Micros, after: Micros) -> None:
        """Measure by the broker's clock (`theirs`), read between two readings of ours."""
        offset = theirs - (before + after) // 2
        if abs(offset - self.value) > (after - before) // 2 + _GRAIN:
            self.value = offset
