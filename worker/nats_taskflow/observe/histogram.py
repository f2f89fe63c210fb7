"""A histogram of durations for what every message counts.

It costs a fifth of the library's.

The library takes two locks per value, since threads may count. Here only the event loop counts, and the library's form is made when
somebody asks for the page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class DurationHistogram(Collector):
    """A histogram with at most one label, for one thread.

    `bounds`: the upper ends of its buckets in seconds, ascending.

    The values of a `label` must come from a closed set. A value is on the page once it was counted.
    """

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], registry: CollectorRegistry, *, label: str = "") -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self.labels = (label,) if label else ()
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(bounds) + 1)}
        self._sums: dict[str, float] = {"": 0.0}
        registry.register(self)

    def observe(self, seconds: float, value: str = "") -> None:
        """Count a duration under this value of the label."""
        counts = self._counts.get(value)
        if counts is None:
            self._counts[value] = counts = [0] * (len(self._bounds) + 1)
            self._sums[value] = 0.0
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[value] += seconds

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Yield the name, so that no other metric can have it."""
        yield HistogramMetricFamily(self._name, self._text, labels=self.labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the figures in the form of the page: each bucket includes those below it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self.labels)
        for value, counts in list(self._counts.items()):
            below, buckets = 0, []
            for bound, count in zip((*map(_label, self._bounds), "+Inf"), counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric((value,) if self.labels else (), buckets, self._sums[value])
        yield family


def _label(bound: float) -> str:
    return repr(float(bound))
