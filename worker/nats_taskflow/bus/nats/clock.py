"""Measure how far the broker's clock is from ours: it says its time with most answers of the JetStream API."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from datetime import datetime

import msgspec

from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.units import Micros, to_micros

_GRAIN: Micros = 20_000
"""Clocks that are kept by NTP differ by some milliseconds all the time: that is no reason to move the offset."""


class ClockOffset:
    """How far the broker's clock is ahead of ours, in microseconds. It moves only by more than a measurement may be wrong."""

    def __init__(self) -> None:
        self.value: Micros = 0

    async def read(self, asking: Awaitable[bytes]) -> Json:
        """Await an answer, look at the time in it, and return it. Raises what msgspec raises where it is no JSON object."""
        before = time.time_ns() // 1000
        raw = await asking
        after = time.time_ns() // 1000
        answer: Json = msgspec.json.decode(raw, type=Json)
        if isinstance(answer.get("ts"), str):
            self.measured(to_micros(msgspec.convert(answer["ts"], datetime)), before, after)
        return answer

    def measured(self, theirs: Micros, before: Micros, after: Micros) -> None:
        """Take what the broker's clock said at some moment between two of ours."""
        offset = theirs - (before + after) // 2
        if abs(offset - self.value) > (after - before) // 2 + _GRAIN:
            self.value = offset
