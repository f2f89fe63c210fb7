"""Count what happens: committed batches, settled messages, and the gauges that are looked at now and then."""

from __future__ import annotations

from worker.flow.lifecycle import EventKind
from worker.store.records import Batch
from worker.telemetry import ACTIONS, Metrics

_UNSTORED = ("ignored", "retried")


class Tracker:
    """Feeds the metrics. Everything here is called on the hot path or from it: it only adds numbers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def committed(self, batch: Batch) -> None:
        """Count a committed batch."""
        metrics = self._metrics
        metrics.batch_size.observe(len(batch.events))
        for name, by in batch.counts.items():
            kind, _, label = name.partition(".")
            if kind == "inbox" and by > 0:
                metrics.messages[label].inc(by)
        for event in batch.events:
            if event.kind is EventKind.RESUMED:
                metrics.resumes[event.payload["cause"]].inc()
        for letter in (*batch.dead, *(letter for _, letter, _ in batch.spoiled)):
            metrics.dead_letters[letter.reason].inc()
        if batch.displaced:
            metrics.dead_letters["expired"].inc(len(batch.displaced))

    def settled(self, verb: str, outcome: str) -> None:
        """Count a command by what its sender was told; and what has no row to be counted by: ignored and retried deliveries."""
        if verb in ACTIONS:
            self._metrics.commands[verb, outcome].inc()
        if outcome in _UNSTORED:
            self._metrics.messages[outcome].inc()

    def looked(self, counts: dict[str, int], *, lag: float, connected: bool, outbox: int) -> None:
        """Set the gauges."""
        metrics = self._metrics
        for name, value in counts.items():
            kind, _, label = name.partition(".")
            if kind == "flows":
                metrics.flows[label].set(value)
        metrics.event_loop_lag.set(lag)
        metrics.nats_connected.set(int(connected))
        metrics.outbox_pending.set(outbox)
