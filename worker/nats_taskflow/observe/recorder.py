"""Feed the metrics from commits, settlements and samples.

Committed batches and settled messages come as they happen; gauges are set from the samples that the probes take.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import Flow
from nats_taskflow.observe.metrics import ACTIONS, FILES, QUOTAS, WAIT_KINDS, Metrics
from nats_taskflow.store.records import Batch
from nats_taskflow.units import SECOND

_UNSTORED = ("ignored", "retried")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the gauges show, at one moment. Times are in seconds, `room` is in bytes.

    `published`, `reconnects`, `dropped` and `busy` count from the start of the worker.
    """

    counts: Mapping[str, int] = {}
    loop_lag: float = 0.0
    overdue: float = 0.0
    connected: bool = False
    ready: bool = False
    writable: bool = True
    outbox: int = 0
    outbox_age: float = 0.0
    set_aside: int = 0
    published: int = 0
    reconnects: int = 0
    dropped: int = 0
    busy: int = 0
    room: Mapping[str, int] = {}


class SlowSample(msgspec.Struct, frozen=True, kw_only=True):
    """What the gauges show that takes the database long to read. Ages are in seconds.

    `wait_age`: of the longest-waiting flow. `letters`: dead letters that nobody has replayed, by reason.
    `most`: by quota, the most that one agent's flows take.
    """

    overdue: int = 0
    wait_age: float = 0.0
    held_age: float = 0.0
    letters: Mapping[str, int] = {}
    most: Mapping[str, int] = {}


class MetricsRecorder:
    """Feeds the metrics. Most of it is called on the hot path: it only adds numbers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = Sample()

    def count_batch(self, batch: Batch) -> None:
        """Count a committed batch."""
        metrics = self._metrics
        metrics.batch_size.observe(len(batch.events))
        for name, by in batch.counts.items():
            kind, _, label = name.partition(".")
            if kind == "inbox" and by > 0:
                metrics.messages[label].inc(by)
        if batch.set_aside:
            metrics.set_aside.inc(len(batch.set_aside))
        self._count_moves(batch)
        for letter in batch.letters:
            metrics.dead_letters[letter.reason].inc()
        if batch.displaced:
            metrics.dead_letters["expired"].inc(len(batch.displaced))

    def _count_moves(self, batch: Batch) -> None:
        """Count what flows did.

        It is added up first, since counting in a metric costs ten times an addition.
        """
        moves: dict[tuple[str, str], int] = {}
        causes: dict[str, int] = {}
        for event in batch.events:
            before, status = event.previous_status, event.status
            if before is not None and before is not status:
                move = before._value_, status._value_  # `value` is a descriptor, and takes three times as long
                moves[move] = moves.get(move, 0) + 1
                if event.kind is EventKind.RESUMED:
                    cause = event.payload["cause"]
                    causes[cause] = causes.get(cause, 0) + 1
        for move, by in moves.items():
            self._metrics.transitions[move].inc(by)
        for cause, by in causes.items():
            self._metrics.resumes[cause].inc(by)
        for write in batch.flows:
            old, flow = write.was, write.flow
            if old is not None and old.parked_us is not None and old.wait_id != flow.wait_id:
                self._metrics.wait_duration.observe((flow.updated_us - old.parked_us) / SECOND, _kind(old))

    def count_outcome(self, verb: str, outcome: str) -> None:
        """Count a command by its outcome, and a message that leaves no row to count by.

        Ignored or retried.
        """
        if verb in ACTIONS:
            self._metrics.commands[verb, outcome].inc()
        if outcome in _UNSTORED:
            self._metrics.messages[outcome].inc()

    def time_commit(self, seconds: float) -> None:
        """Record how long a transaction took."""
        self._metrics.commit_duration.observe(seconds)

    def timer_lag(self, seconds: float) -> None:
        """Record how long after its due time a timer or deadline was acted on."""
        self._metrics.timer_lag.observe(seconds)

    def sample(self, sample: Sample) -> None:
        """Set the gauges, and raise the counters of what is counted elsewhere."""
        metrics = self._metrics
        for name, value in sample.counts.items():
            kind, _, label = name.partition(".")
            if kind == "flows":
                metrics.flows[label].set(value)
            elif kind == "waits":
                metrics.waits[label].set(value)
        metrics.replies_unmatched.set(sample.counts.get("held", 0))
        metrics.event_loop_lag.set(sample.loop_lag)
        metrics.timer_overdue.set(sample.overdue)
        metrics.nats_connected.set(int(sample.connected))
        metrics.ready.set(int(sample.ready))
        metrics.store_writable.set(int(sample.writable))
        metrics.outbox_pending.set(sample.outbox)
        metrics.outbox_age.set(sample.outbox_age)
        metrics.outbox_set_aside.set(sample.set_aside)
        for name in FILES:
            if name in sample.room:
                metrics.store_size[name].set(sample.room[name])
        if "free" in sample.room:
            metrics.store_free.set(sample.room["free"])
        metrics.events_published.inc(sample.published - self._last.published)
        metrics.nats_reconnects.inc(sample.reconnects - self._last.reconnects)
        metrics.nats_dropped.inc(sample.dropped - self._last.dropped)
        metrics.store_busy.inc(sample.busy - self._last.busy)
        self._last = sample

    def sample_slow(self, sample: SlowSample) -> None:
        """Set the gauges of what takes long to read."""
        metrics = self._metrics
        metrics.timers_overdue.set(sample.overdue)
        metrics.wait_age.set(sample.wait_age)
        metrics.replies_age.set(sample.held_age)
        for reason in {*metrics.dead_letters_kept, *sample.letters}:
            metrics.dead_letters_kept[reason].set(sample.letters.get(reason, 0))
        for quota in QUOTAS:
            metrics.usage_max[quota].set(sample.most.get(quota, 0))

    def time_command(self, seconds: float) -> None:
        """Record how long a command on `api` took."""
        self._metrics.command_duration.observe(seconds)

    def count_replays(self, done: int, failed: int) -> None:
        """Count dead letters that were replayed, and those that could not be replayed."""
        self._metrics.replays["done"].inc(done)
        self._metrics.replays["failed"].inc(failed)

    def count_spans(self, outcome: str, by: int) -> None:
        """Count spans by what became of them. May be called on any thread."""
        self._metrics.spans[outcome].inc(by)

    def sample_backlog(self, pending: Mapping[str, int]) -> None:
        """Set how many messages wait in the streams, by consumer."""
        for consumer, count in pending.items():
            self._metrics.nats_pending[consumer].set(count)


def _kind(flow: Flow) -> str:
    kind = flow.wait_json.get("kind") if flow.wait_json is not None else None
    return kind if kind in WAIT_KINDS else "other"
