"""Count what happens: committed batches, settled messages, and the gauges that are looked at now and then."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import Flow
from nats_taskflow.observe.metrics import ACTIONS, FILES, QUOTAS, WAIT_KINDS, Metrics
from nats_taskflow.observe.wait_counts import WaitCounts
from nats_taskflow.store.records import Batch
from nats_taskflow.units import SECOND

_UNSTORED = ("ignored", "retried")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen at one look. Times are seconds, `room` is bytes.

    `published`, `reconnects`, `dropped` and `busy` count from the start.
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
    """What was found in the database at one of the slower looks. Ages are seconds.

    `waits`: how many flows wait and how long the first of them has, by kind; `letters`: those not replayed, by reason; `most`: what one
    agent's flows take at most, by quota.
    """

    overdue: int = 0
    waits: Mapping[str, tuple[int, float]] = {}
    held_age: float = 0.0
    letters: Mapping[str, int] = {}
    most: Mapping[str, int] = {}


class MetricsRecorder:
    """Feeds the metrics. Everything here is called on the hot path or from it: it only adds numbers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = Sample()
        self.census = WaitCounts()

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
        self._moved(batch)
        for letter in batch.letters:
            metrics.dead_letters[letter.reason].inc()
        if batch.displaced:
            metrics.dead_letters["expired"].inc(len(batch.displaced))

    def _moved(self, batch: Batch) -> None:
        """Count what flows did. Added up first: to look a child up and count in it costs ten times as much as to add."""
        moves: dict[tuple[str, str], int] = {}
        causes: dict[str, int] = {}
        for event in batch.events:
            was, status = event.previous_status, event.status
            if was is not None and was is not status:
                move = was._value_, status._value_  # `value` is a descriptor, and takes three times as long
                moves[move] = moves.get(move, 0) + 1
                if event.kind is EventKind.RESUMED:
                    cause = event.payload["cause"]
                    causes[cause] = causes.get(cause, 0) + 1
        for move, by in moves.items():
            self._metrics.transitions[move].inc(by)
        for cause, by in causes.items():
            self._metrics.resumes[cause].inc(by)
        for write in batch.flows:
            was_flow, flow = write.was, write.flow
            generation = None if was_flow is None else was_flow.wait_id
            if generation != flow.wait_id:
                if was_flow is not None and was_flow.parked_us is not None:
                    kind = _kind(was_flow)
                    self.census.moved(batch.first_event, kind, was_flow.parked_us, -1)
                    self._metrics.wait_duration.observe((flow.updated_us - was_flow.parked_us) / SECOND, kind or "other")
                if flow.parked_us is not None:
                    self.census.moved(batch.first_event, _kind(flow), flow.parked_us, 1)

    def count_outcome(self, verb: str, outcome: str) -> None:
        """Count a command by what its sender was told; and what has no row to be counted by: ignored and retried deliveries."""
        if verb in ACTIONS:
            self._metrics.commands[verb, outcome].inc()
        if outcome in _UNSTORED:
            self._metrics.messages[outcome].inc()

    def time_commit(self, seconds: float) -> None:
        """Note how long a transaction took."""
        self._metrics.commit_duration.observe(seconds)

    def timer_lag(self, seconds: float) -> None:
        """Note how long after its due time a timer or deadline was acted on."""
        self._metrics.timer_lag.observe(seconds)

    def sample(self, look: Sample) -> None:
        """Set the gauges, and count on what is counted elsewhere."""
        metrics = self._metrics
        for name, value in look.counts.items():
            kind, _, label = name.partition(".")
            if kind == "flows":
                metrics.flows[label].set(value)
        metrics.replies_unmatched.set(look.counts.get("held", 0))
        metrics.event_loop_lag.set(look.loop_lag)
        metrics.timer_overdue.set(look.overdue)
        metrics.nats_connected.set(int(look.connected))
        metrics.ready.set(int(look.ready))
        metrics.store_writable.set(int(look.writable))
        metrics.outbox_pending.set(look.outbox)
        metrics.outbox_age.set(look.outbox_age)
        metrics.outbox_set_aside.set(look.set_aside)
        for name in FILES:
            if name in look.room:
                metrics.store_size[name].set(look.room[name])
        if "free" in look.room:
            metrics.store_free.set(look.room["free"])
        metrics.events_published.inc(look.published - self._last.published)
        metrics.nats_reconnects.inc(look.reconnects - self._last.reconnects)
        metrics.nats_dropped.inc(look.dropped - self._last.dropped)
        metrics.store_busy.inc(look.busy - self._last.busy)
        self._last = look

    def sample_slow(self, survey: SlowSample) -> None:
        """Set the gauges of what takes longer to find out."""
        metrics = self._metrics
        metrics.timers_overdue.set(survey.overdue)
        for kind in {*metrics.waits, *survey.waits}:
            count, age = survey.waits.get(kind, (0, 0.0))
            metrics.waits[kind].set(count)
            metrics.wait_age[kind].set(age)
        metrics.replies_age.set(survey.held_age)
        for reason in {*metrics.dead_letters_kept, *survey.letters}:
            metrics.dead_letters_kept[reason].set(survey.letters.get(reason, 0))
        for quota in QUOTAS:
            metrics.usage_max[quota].set(survey.most.get(quota, 0))

    def time_command(self, seconds: float) -> None:
        """Note how long a command on `api` took."""
        self._metrics.command_duration.observe(seconds)

    def count_replays(self, done: int, failed: int) -> None:
        """Count dead letters that were replayed, and those that could not be."""
        self._metrics.replays["done"].inc(done)
        self._metrics.replays["failed"].inc(failed)

    def count_spans(self, outcome: str, by: int) -> None:
        """Count spans by what became of them. May be called on another thread."""
        self._metrics.spans[outcome].inc(by)

    def backlog(self, pending: Mapping[str, int]) -> None:
        """Note how many messages wait in the streams, by the name of the consumer."""
        for consumer, count in pending.items():
            self._metrics.nats_pending[consumer].set(count)


def _kind(flow: Flow) -> str:
    """Return the kind of a flow's wait; empty where it is none that is known."""
    kind = flow.wait_json.get("kind") if flow.wait_json is not None else None
    return kind if kind in WAIT_KINDS else ""
