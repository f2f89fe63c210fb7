"""Count durations into buckets for a fifth of what the library's histogram costs: for what is counted with every message.

The library takes two locks for each value, since threads may count. Here only the event loop counts, and what is counted is put into the
library's form when somebody asks for the page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class Timings(Collector):
    """A histogram without labels. `bounds` are the upper ends of its buckets, in seconds, ascending; not for use by several threads."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Name it, so that no other can have the name."""
        yield HistogramMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Say it in the form of the page: each bucket counts what is in those below it, too."""
        below, buckets = 0, []
        for bound, count in zip((*map(_spelled, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            buckets.append((bound, below))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


def _spelled(bound: float) -> str:
    """Spell a bound as the library does."""
    return repr(float(bound))
