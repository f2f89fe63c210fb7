"""Every metric of the worker, with its name, help text and labels.

`recorder` feeds them.

Label sets are closed, and a metric's children are kept: to look one up costs more than to count in it.
"""

from __future__ import annotations

import platform
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from nats_taskflow.errors import FlowError
from nats_taskflow.flow.lifecycle import NEXT
from nats_taskflow.observe.histogram import DurationHistogram
from nats_taskflow.version import program_revision, program_version
from nats_taskflow.wire.inbound import REASONS

FLOW_STATUSES = ("created", "running", "waiting", "cancelled", "finished", "failed")
ACTIONS = ("start", "run", "advance", "wait", "delegate", "resume", "finish", "fail", "cancel", "observe")
MESSAGE_OUTCOMES = (
    *("applied", "resumed", "progressed", "held", "duplicate", "conflict", "late", "expired", "flow_mismatch", "rejected", "dead"),
    *("unmatched", "ignored", "retried"),
)
QUOTAS = ("open_flows", "state_bytes")
WAIT_KINDS = ("timer", "external_event", "flow", "manual", "any_of", "all_of", "at_least")
RESUME_CAUSES = ("event", "timer", "timeout", "manual")
TRANSITIONS = tuple((was.value, then.value) for was, following in NEXT.items() for then in sorted(following))
CONSUMERS = ("worker", "replies", "taskflow")
OUTLETS = ("events", "dead_letters")
FILES = ("db", "wal")
REPLAY_OUTCOMES = ("done", "failed")
SPAN_OUTCOMES = ("exported", "failed", "dropped")
DEAD_LETTER_REASONS = (*REASONS, "poison", "conflict", "flow_mismatch", "expired", "not_accepted")
_ANSWERS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LAGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0)
_WAITS = (1.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=MetricWrapperBase)


class LabelledChildren(dict[K, M], Generic[K, M]):
    """The children of a metric by label value.

    A value outside the closed set counts under `other`.

    A child is made when it is first counted: the page shows what happened, not all that could (RELIABILITY 4, row 56). `shown`: all are
    there from the start, for alerts, since Prometheus sees no increase in a series that begins with 1.
    """

    def __init__(self, metric: M, values: Iterable[K], *, shown: bool = False) -> None:
        super().__init__()
        self._metric = metric
        self.closed = frozenset(values)
        self.name: str = next(iter(metric.describe())).name + ("_total" if isinstance(metric, Counter) else "")
        self.labels: tuple[str, ...] = tuple(metric._labelnames)  # noqa: SLF001 - there is no public name for it
        self._other = tuple("other" for _ in self.labels)
        if shown:
            for value in self.closed:
                self.__missing__(value)

    def __missing__(self, key: K) -> M:
        if key not in self.closed:
            return self._metric.labels(*self._other)
        self[key] = child = self._metric.labels(*(key if isinstance(key, tuple) else (key,)))
        return child


class Metrics:
    """Every metric of the worker, on a registry of its own.

    `metrics.messages["applied"].inc()`.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series, and nobody reads them
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("taskflow_build", "The running program.", registry=self.registry).info(
            {"version": program_version(), "revision": program_revision(), "python": platform.python_version()},
        )
        # The unit of deploy/systemd hides /proc/stat, and with it process_start_time_seconds.
        self._gauge("taskflow_start_time_seconds", "When the worker started, in seconds since the epoch.").set_to_current_time()
        self.ready = self._gauge("taskflow_ready", "1 while /readyz answers ok.")
        self._count_messages()
        self._watch_flows()
        self._watch_waits()
        self._watch_store()
        self._watch_bus()

    def _count_messages(self) -> None:
        """Make the metrics of messages and commands."""
        outcomes = ("applied", "duplicate", *(kind.code for kind in FlowError.__subclasses__()))
        commands = self._counter("taskflow_commands", "Commands by verb and outcome.", "action", "outcome")
        self.commands: LabelledChildren[tuple[str, str], Counter] = LabelledChildren(
            commands, [(verb, outcome) for verb in ACTIONS for outcome in outcomes]
        )
        self.command_duration = DurationHistogram(
            "taskflow_command_duration_seconds", "How long commands on api took, from the request to its answer.", _ANSWERS, self.registry
        )
        messages = self._counter("taskflow_messages", "Messages taken from streams, by outcome. Each has exactly one.", "outcome")
        self.messages: LabelledChildren[str, Counter] = LabelledChildren(messages, MESSAGE_OUTCOMES)
        resumes = self._counter("taskflow_resumes", "Flows that resumed, by what ended their wait.", "cause")
        self.resumes: LabelledChildren[str, Counter] = LabelledChildren(resumes, RESUME_CAUSES)
        dead = self._counter("taskflow_dead_letters", "Messages that became dead letters, by reason.", "reason")
        self.dead_letters: LabelledChildren[str, Counter] = LabelledChildren(dead, DEAD_LETTER_REASONS, shown=True)
        kept = self._gauge("taskflow_dead_letters_kept", "Dead letters that nobody has replayed, by reason.", "reason")
        self.dead_letters_kept: LabelledChildren[str, Gauge] = LabelledChildren(kept, DEAD_LETTER_REASONS)
        replays = self._counter("taskflow_dead_letter_replays", "Replays of dead letters, by outcome.", "outcome")
        self.replays: LabelledChildren[str, Counter] = LabelledChildren(replays, REPLAY_OUTCOMES)

    def _watch_flows(self) -> None:
        """Make the metrics of flows."""
        self.flows: LabelledChildren[str, Gauge] = LabelledChildren(
            self._gauge("taskflow_flows", "Flows by status.", "status"), FLOW_STATUSES
        )
        for status in FLOW_STATUSES:
            self.flows[status].set(0)
        moves = self._counter("taskflow_transitions", "Changes of status, by the status before and after.", "from", "to")
        self.transitions: LabelledChildren[tuple[str, str], Counter] = LabelledChildren(moves, TRANSITIONS)
        most = self._gauge("taskflow_agent_usage_max", "The most that the flows of any one agent take, by quota.", "quota")
        self.usage_max: LabelledChildren[str, Gauge] = LabelledChildren(most, QUOTAS)
        self.set_aside = self._counter(
            "taskflow_flows_set_aside", "Flows set aside because their row could not be read; timers pass them over."
        )

    def _watch_waits(self) -> None:
        """Make the metrics of waits, timers and held replies."""
        self.replies_unmatched = self._gauge("taskflow_replies_unmatched", "Replies that are held because no flow waits for them yet.")
        self.replies_age = self._gauge(
            "taskflow_replies_unmatched_oldest_age_seconds", "Age of the oldest reply that no flow waits for yet."
        )
        waits = self._gauge("taskflow_waits", "Waiting flows, by the kind of their wait.", "kind")
        self.waits: LabelledChildren[str, Gauge] = LabelledChildren(waits, WAIT_KINDS)
        self.wait_age = self._gauge("taskflow_wait_oldest_age_seconds", "How long the longest-waiting flow has waited.")
        self.wait_duration = DurationHistogram(
            "taskflow_wait_duration_seconds", "How long waits lasted that are over, by kind.", _WAITS, self.registry, label="kind"
        )
        self.timers_overdue = self._gauge(
            "taskflow_timers_overdue", "Flows with a timer or deadline that has passed and was not acted on. Counted up to 10,000."
        )
        self.timer_lag = self._histogram(
            "taskflow_timer_lag_seconds", "How long after their time timers and deadlines were acted on.", _LAGS
        )
        self.timer_overdue = self._gauge(
            "taskflow_timer_overdue_seconds", "How long ago the earliest timer or deadline passed that was not acted on."
        )

    def _watch_store(self) -> None:
        """Make the metrics of the database, and of the process."""
        self.commit_duration = self._histogram(
            "taskflow_store_commit_duration_seconds", "How long transactions took, commit included.", _SHORT
        )
        self.batch_size = self._histogram("taskflow_store_batch_size", "Changes per transaction.", _SIZES)
        self.store_writable = self._gauge(
            "taskflow_store_writable", "1 while the database takes changes; 0 when it does not, usually because the disk is full."
        )
        self.store_busy = self._counter(
            "taskflow_store_busy", "Transactions that were put off because the database was locked by another process, or full."
        )
        size = self._gauge("taskflow_store_size_bytes", "Size of the database (db) and of its write-ahead log (wal).", "file")
        self.store_size: LabelledChildren[str, Gauge] = LabelledChildren(size, FILES)
        self.store_free = self._gauge("taskflow_store_free_bytes", "Space that the worker can still use on the database's disk.")
        self.log_records_lost = self._counter("taskflow_log_records_lost", "Log records that could not be written.")
        self.event_loop_lag = self._gauge("taskflow_event_loop_lag_seconds", "How late the event loop woke up, as last measured.")

    def _watch_bus(self) -> None:
        """Make the metrics of NATS and of what is published."""
        self.events_published = self._counter("taskflow_events_published", "Events that the broker has stored.")
        self.outbox_pending = self._gauge(
            "taskflow_outbox_pending",
            "Events and dead letters on their way to the broker. Their number is bounded: for a backlog see the age.",
        )
        self.outbox_age = self._gauge(
            "taskflow_outbox_oldest_age_seconds", "Age of the oldest event or dead letter that is committed and not yet published."
        )
        self.outbox_set_aside = self._gauge(
            "taskflow_outbox_set_aside",
            "Flows with an event, and dead letters, that the broker refuses for their own sake, for their size, say.",
        )
        self.nats_connected = self._gauge("taskflow_nats_connected", "1 while connected to NATS.")
        pending = self._gauge(
            "taskflow_nats_pending_messages",
            "Messages in the streams that the worker has not taken yet: commands (worker) and replies (the others).",
            "consumer",
        )
        self.nats_pending: LabelledChildren[str, Gauge] = LabelledChildren(pending, CONSUMERS)
        self.nats_reconnects = self._counter("taskflow_nats_reconnects", "How often the connection to NATS came back.")
        self.nats_dropped = self._counter(
            "taskflow_nats_slow_consumer", "Requests on api and admin that were refused unread because too many waited before them."
        )
        spans = self._counter("taskflow_spans", "Trace spans, by what became of them.", "outcome")
        self.spans: LabelledChildren[str, Counter] = LabelledChildren(spans, SPAN_OUTCOMES)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)
