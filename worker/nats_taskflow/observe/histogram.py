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


class DurationHistogram(Collector):
    """A histogram with at most one label. `bounds`: the upper ends of its buckets, in seconds, ascending. Not for use by several threads.

    With a `label`, its values have to come from a closed set; one is shown once it was counted.
    """

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], registry: CollectorRegistry, *, label: str = "") -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self.labels = (label,) if label else ()
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(bounds) + 1)}
        self._sums: dict[str, float] = {"": 0.0}
        registry.register(self)

    def observe(self, seconds: float, of: str = "") -> None:
        """Count one duration, under this value of the label."""
        counts = self._counts.get(of)
        if counts is None:
            self._counts[of] = counts = [0] * (len(self._bounds) + 1)
            self._sums[of] = 0.0
        counts[bisect_left(self._bounds, seconds)] += 1
        self._sums[of] += seconds

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Name it, so that no other can have the name."""
        yield HistogramMetricFamily(self._name, self._text, labels=self.labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Say it in the form of the page: each bucket counts what is in those below it, too."""
        family = HistogramMetricFamily(self._name, self._text, labels=self.labels)
        for of, counts in list(self._counts.items()):
            below, buckets = 0, []
            for bound, count in zip((*map(_spelled, self._bounds), "+Inf"), counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric((of,) if self.labels else (), buckets, self._sums[of])
        yield family


def _spelled(bound: float) -> str:
    """Spell a bound as the library does."""
    return repr(float(bound))
