"""Describe every metric, from the registry that `/metrics` shows: docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase

from docs.generate.markdown import BY_HAND, cell, code, page_of, table
from nats_taskflow.observe.histogram import DurationHistogram
from nats_taskflow.observe.metrics import LabelledChildren, Metrics

_HEAD = f"""# Metrics

{BY_HAND}

What `/metrics` shows, on the health address (`http.bind`, `127.0.0.1:8642`), in Prometheus' text format. What to watch, and what to do when it
moves, is in [Monitoring](monitoring.md).

The number of series is bounded: verbs, outcomes, reasons and statuses come from closed sets, and everything else counts as `other`. No flow,
agent or topic is a label; ask the worker for those (`taskflow waits`, `taskflow flow list`). A page has at most 200 series; most of a counter's
appear when they are first counted. Gauges are set once a second. Those that cost the database more (the oldest wait and held reply, overdue
timers, dead letters kept) are set every fifteen seconds, and what the broker is asked for (`taskflow_nats_pending_messages`) every ten.
Prometheus' own `process_*` are there, too.
"""

_MORE = {
    "taskflow_start_time_seconds": "`process_start_time_seconds` is missing under the unit's `ProcSubset=pid`.",
    "taskflow_messages_total": "See [Guarantees](guarantees.md) and [Errors](errors.md#outcomes-of-messages).",
    "taskflow_flows": "`waiting` is the number of waits.",
    "taskflow_replies_unmatched_oldest_age_seconds": "A reply becomes a dead letter at `engine.held_reply_ttl` (24 hours).",
    "taskflow_timer_lag_seconds": "What fell due while the worker was down counts in full.",
    "taskflow_store_commit_duration_seconds": "The sync to disk is most of it.",
    "taskflow_outbox_oldest_age_seconds": "Up to a second or two when all is well.",
    "taskflow_outbox_set_aside": "Tried again every ten seconds; `flow_not_published` in the log names each.",
    "taskflow_dead_letters_total": "See [Dead letters](dead-letters.md).",
}
"""What is worth knowing beside the help on the page itself."""


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines."""
    metrics = Metrics()
    collectors = [metric for metric in metrics.registry._collector_to_names if isinstance(metric, MetricWrapperBase | DurationHistogram)]  # noqa: SLF001
    label_values = _label_values(metrics)
    yield _HEAD
    yield from table(("metric", "type", "labels", "what"), (_row(metric, label_values) for metric in collectors))
    yield from ("## Labels", "", "What each can be, beside `other`.", "")
    for name in sorted(label_values):
        for label, values in label_values[name]:
            yield f"- `{name}`, `{label}`: {', '.join(code(value) for value in values)}"


def _row(metric: MetricWrapperBase | DurationHistogram, label_values: dict[str, list[tuple[str, list[str]]]]) -> tuple[str, ...]:
    """Describe one metric under the name that its samples have."""
    family = next(iter(metric.describe()))
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    name = family.name + suffix
    labels = [label for label, _ in label_values.get(name, ())]
    if family.type == "info":
        labels = ["version", "python"]
    kind = "gauge" if family.type == "info" else family.type
    more = f" {_MORE[name]}" if name in _MORE else ""
    return code(name), kind, ", ".join(code(label) for label in labels), cell(family.documentation) + more


def _label_values(metrics: Metrics) -> dict[str, list[tuple[str, list[str]]]]:
    """Return the labels of each metric, each with the values it can have."""
    by_name = {}
    for children in vars(metrics).values():
        if isinstance(children, LabelledChildren):
            values = [value if isinstance(value, tuple) else (value,) for value in children.closed]
            labels = [(label, sorted({value[at] for value in values})) for at, label in enumerate(children.labels)]
            by_name[children.name] = labels
    return by_name
