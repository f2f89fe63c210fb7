"""Say what happens, for people and machines: how log lines look, and every name of a log event or a metric.

Logs: one record is one line on stderr, JSON where nobody watches, readable text on a terminal. Metrics: a `Metrics` object made by the
composition root; label sets are closed and their children made beforehand, since a label look-up costs more than the counting.
"""

from __future__ import annotations

import io
import json
import logging
import platform
import sys
from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from enum import StrEnum
from typing import Any, Generic, TextIO, TypeVar, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from worker.config.tree import Log
from worker.errors import FlowError
from worker.flow.lifecycle import NEXT
from worker.version import program_version
from worker.wire.verdicts import REASONS

FLOW_STATUSES = ("created", "running", "waiting", "cancelled", "finished", "failed")
ACTIONS = ("start", "run", "advance", "wait", "delegate", "resume", "finish", "fail", "cancel", "observe")
MESSAGE_OUTCOMES = (
    *("applied", "resumed", "progressed", "held", "duplicate", "conflict", "late", "expired", "flow_mismatch", "rejected", "dead"),
    *("unmatched", "ignored", "retried"),
)
RESUME_CAUSES = ("event", "timer", "timeout", "manual")
TRANSITIONS = tuple((was.value, then.value) for was, following in NEXT.items() for then in sorted(following))
OUTLETS = ("events", "dead_letters")
FILES = ("db", "wal")
DEAD_LETTER_REASONS = (*REASONS, "poison", "conflict", "flow_mismatch", "expired", "not_accepted")
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LAGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class Said(StrEnum):
    """Every log event; what differs between two records of one event goes into fields."""

    STARTING = "worker.starting"
    READY = "worker.ready"
    STOPPING = "worker.stopping"
    STOPPED = "worker.stopped"
    STOPPED_AT_ONCE = "worker.stopped_at_once"
    STORE_OPENED = "store.opened"
    STORE_UNAVAILABLE = "store.unavailable"
    STORE_RECOVERED = "store.recovered"
    STORE_NOT_CLOSED = "store.not_closed"
    BUS_CONNECTED = "bus.connected"
    BUS_DISCONNECTED = "bus.disconnected"
    BUS_RECONNECTED = "bus.reconnected"
    BUS_ERROR = "bus.error"
    STREAM_CREATED = "topology.stream_created"
    PROVISIONED = "topology.provisioned"
    STREAM_AT_RISK = "topology.stream_at_risk"
    PULL_INTERRUPTED = "pull.interrupted"
    DELIVERY_RETRIED = "consumer.delivery_retried"
    DEAD_LETTERED = "consumer.dead_lettered"
    COMMAND_REFUSED = "consumer.command_refused"
    TICK = "wait engine tick"  # as the reference system spells it: people search for it
    FLOW_SET_ASIDE = "store.flow_set_aside"
    RELAY_BEHIND = "relay.behind"
    PRUNED = "pruner.pruned"
    DEFECT = "defect"
    FROM_LIBRARY = "library.log"


def configure_logging(log: Log, stream: TextIO | None = None) -> None:
    """Send all logging of this process, libraries' warnings included, to `stream` (stderr) as `log` says. Call once, at start."""
    out = sys.stderr if stream is None else stream
    console = log.format == "console" or (log.format == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        name_logger,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        structlog.processors.StackInfoRenderer(),
    ]
    shown: list[structlog.typing.Processor] = (
        [printable, structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=printable_traceback)]
        if console
        else [structlog.processors.format_exc_info, one_line]
    )
    level = logging.getLevelNamesMapping()[log.level.upper()]
    structlog.configure(
        processors=[*shared, *shown],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: NamedWriter(out, *names),
        cache_logger_on_first_use=True,  # a look-up on each call would cost more than a filtered call does
    )
    root = logging.getLogger()
    root.handlers = [FromLibrary()]
    root.setLevel(max(level, logging.WARNING))  # below it aiosqlite logs statements with their values, which are payloads


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Give a logger whose records carry `logger: name`; the same as `structlog.get_logger(name)`, typed."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(name))


class NamedWriter(structlog.WriteLogger):
    """Writes lines to a stream, and remembers whose they are."""

    def __init__(self, out: TextIO, name: str = "") -> None:
        super().__init__(out)
        self.name = name


def name_logger(writer: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the logger's name, where it has one."""
    name = getattr(writer, "name", "")
    if name:
        record.setdefault("logger", name)
    return record


def one_line(_logger: object, _method: str, record: MutableMapping[str, Any]) -> str:
    """Render a record as one line of ASCII JSON, whatever is in it: no text in it can begin a second line or a second record."""
    try:
        return _encode(record)
    except (TypeError, ValueError, RecursionError):  # a NaN, a key that is no text, a structure that contains itself
        return _encode({str(key): value if _plain(value) else _described(value) for key, value in record.items()})


def _encode(record: Mapping[str, Any]) -> str:
    """Write JSON. Everything outside ASCII is escaped, since U+2028 and U+0085 end a line for many readers."""
    return json.dumps(record, default=_described, allow_nan=False, separators=(",", ":"))


def _plain(value: object) -> bool:
    """Tell whether a value can go into JSON as it is."""
    return value is None or isinstance(value, str | int)


def _described(value: object) -> str:
    """Give the `repr` of a value that JSON does not have."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a broken or too deep __repr__ must not turn a log call into a failure
        return f"<{type(value).__name__}>"


def printable(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters in texts, so that nobody's message can move the cursor of the terminal that shows it."""
    return {key: _visible(value) if isinstance(value, str) else value for key, value in record.items()}


def printable_traceback(out: TextIO, failure: structlog.typing.ExcInfo) -> None:
    """Write a traceback over its lines; what the error's message quotes of somebody's text is escaped like any other."""
    told = io.StringIO()
    structlog.dev.plain_traceback(told, failure)
    out.write("\n".join(map(_visible, told.getvalue().split("\n"))))


def _visible(text: str) -> str:
    """Escape what does not print."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class FromLibrary(logging.Handler):
    """Hand what a library logs through the standard library to structlog, in the same form as our own records."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record of a library under its own logger's name."""
        told = logger(record.name)
        told.log(record.levelno, Said.FROM_LIBRARY, message=record.getMessage(), exc_info=record.exc_info or None)


K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=MetricWrapperBase)


class Children(dict[K, M], Generic[K, M]):
    """The children of a metric by label value, each bound once; a value outside the closed set counts under `other`.

    A child is made when it is first counted: the page shows what happened, not all that could (RELIABILITY 4, row 56). `shown`: it is there
    from the start, for alerts, since Prometheus sees no increase in a series that begins with 1.
    """

    def __init__(self, metric: M, values: Iterable[K], *, shown: bool = False) -> None:
        super().__init__()
        self._metric = metric
        self._closed = frozenset(values)
        self._other = tuple("other" for _ in metric._labelnames)  # noqa: SLF001 - there is no public name for it
        if shown:
            for value in self._closed:
                self.__missing__(value)

    def __missing__(self, key: K) -> M:
        if key not in self._closed:
            return self._metric.labels(*self._other)
        self[key] = child = self._metric.labels(*(key if isinstance(key, tuple) else (key,)))
        return child


class Metrics:
    """Every metric of the worker on a registry of its own. Attributes are ready to use: `metrics.messages["applied"].inc()`."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every first one, which nobody reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("taskflow_build", "The running program.", registry=self.registry).info(
            {"version": program_version(), "python": platform.python_version()},
        )
        # Our own, since the unit of deploy/systemd hides /proc/stat, and with it process_start_time_seconds.
        self._gauge("taskflow_start_time_seconds", "When the worker started, in seconds since the epoch.").set_to_current_time()
        self.ready = self._gauge("taskflow_ready", "1 while /readyz says ok.")
        self._count_messages()
        self._watch_engine()
        self._watch_bus()

    def _count_messages(self) -> None:
        """Make the metrics of what came in and what became of it."""
        outcomes = ("applied", "duplicate", *(kind.code for kind in FlowError.__subclasses__()))
        commands = self._counter("taskflow_commands", "Commands by verb and outcome.", "action", "outcome")
        self.commands: Children[tuple[str, str], Counter] = Children(
            commands, [(verb, outcome) for verb in ACTIONS for outcome in outcomes]
        )
        messages = self._counter("taskflow_messages", "Messages taken from streams, by the one outcome each has.", "outcome")
        self.messages: Children[str, Counter] = Children(messages, MESSAGE_OUTCOMES)
        resumes = self._counter("taskflow_resumes", "Flows that resumed, by what ended the wait.", "cause")
        self.resumes: Children[str, Counter] = Children(resumes, RESUME_CAUSES)
        dead = self._counter("taskflow_dead_letters", "Messages dead-lettered, by reason.", "reason")
        self.dead_letters: Children[str, Counter] = Children(dead, DEAD_LETTER_REASONS, shown=True)

    def _watch_engine(self) -> None:
        """Make the metrics of flows, timers and the store."""
        self.flows: Children[str, Gauge] = Children(self._gauge("taskflow_flows", "Flows by status.", "status"), FLOW_STATUSES)
        for status in FLOW_STATUSES:
            self.flows[status].set(0)
        moves = self._counter("taskflow_transitions", "Flows that went from one status to another.", "from", "to")
        self.transitions: Children[tuple[str, str], Counter] = Children(moves, TRANSITIONS)
        self.set_aside = self._counter("taskflow_flows_set_aside", "Flows whose row could not be read, taken out of the timers' way.")
        self.replies_unmatched = self._gauge("taskflow_replies_unmatched", "Replies held because nobody waits for them yet.")
        self.timer_lag = self._histogram("taskflow_timer_lag_seconds", "How late timers and deadlines were acted on.", _LAGS)
        self.timer_overdue = self._gauge(
            "taskflow_timer_overdue_seconds", "How long the earliest timer or deadline that was not acted on has been due."
        )
        self.commit_duration = self._histogram(
            "taskflow_store_commit_duration_seconds", "Duration of one transaction, commit included.", _SHORT
        )
        self.batch_size = self._histogram("taskflow_store_batch_size", "Changes in one transaction.", _SIZES)
        self.store_writable = self._gauge("taskflow_store_writable", "1 while the database takes changes (0: the disk is full).")
        size = self._gauge("taskflow_store_size_bytes", "Size of the database and of its log.", "file")
        self.store_size: Children[str, Gauge] = Children(size, FILES)
        self.store_free = self._gauge("taskflow_store_free_bytes", "Room left on the database's disk for the worker.")
        self.event_loop_lag = self._gauge("taskflow_event_loop_lag_seconds", "How late the event loop woke at the last look.")

    def _watch_bus(self) -> None:
        """Make the metrics of NATS and of what is sent."""
        self.events_published = self._counter("taskflow_events_published", "State-change events the broker has stored.")
        self.outbox_pending = self._gauge(
            "taskflow_outbox_pending", "Events and dead letters given to the broker and not yet stored there (a window: see the age)."
        )
        self.outbox_age = self._gauge(
            "taskflow_outbox_oldest_age_seconds", "How long ago the oldest event or dead letter was committed that is not yet published."
        )
        self.nats_connected = self._gauge("taskflow_nats_connected", "1 while connected to NATS.")
        self.nats_pending = self._gauge("taskflow_nats_pending_messages", "Commands and replies that lie in the streams, not yet taken.")
        self.nats_reconnects = self._counter("taskflow_nats_reconnects", "Times the connection to NATS came back.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter; `_total` is added to its name."""
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge."""
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        """Make a histogram."""
        return Histogram(name, text, buckets=buckets, registry=self.registry)
