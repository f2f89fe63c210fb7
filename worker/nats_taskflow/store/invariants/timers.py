"""Check that time acts when it should.

It acts never before its time, once for each leaf, and at the time the row says.
"""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.flow.conditions import Timer, WaitCondition, due_times, ends_at, from_value, nodes
from nats_taskflow.flow.end import TIMED_OUT
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.store.invariants.evidence import FlowHistory
from nats_taskflow.units import Micros, format_duration, to_micros, to_the_second

_ENDS = {EventKind.RESUMED, EventKind.FAILED, EventKind.CANCELLED}


def nothing_is_early(history: FlowHistory) -> Iterator[str]:
    """I-17: no timer fires and no deadline passes before its time, each at most once."""
    condition: WaitCondition | None = None
    for event in history.events:
        if event.kind is EventKind.WAITING:
            condition = from_value(event.payload.get("wait"))
        if condition is None:
            continue
        due = _due(event, condition)
        if due is not None and event.at_us < due:
            early = format_duration(due - event.at_us)
            yield f"{event.kind} at {to_the_second(event.at_us)} ended a wait of {history.id} {early} before its time"
        if event.kind in _ENDS:
            condition = None


def is_due_when_the_row_says(history: FlowHistory) -> Iterator[str]:
    """I-17: a parked flow is due at the next time that its wait names.

    At any other time it would be early, late or never.
    """
    if history.flow is None:
        return
    condition = from_value(history.flow.wait_json) if history.flow.wait_json is not None else None
    due = due_times(condition, history.flow.progress or {})[:1] if condition is not None else []
    expected = due[0][0] if due else None
    if history.flow.cancel_requested and condition is not None:
        expected = history.flow.updated_us
    if history.due_us != expected:
        apart = "" if history.due_us is None or expected is None else f", {format_duration(abs(history.due_us - expected))} apart"
        yield f"{history.id} is due {_when(history.due_us)} by its row, {_when(expected)} by its wait{apart}"


def _due(event: FlowEvent, condition: WaitCondition) -> Micros | None:
    """Return the time before which this entry must not have come.

    None where it was not time that brought it about.
    """
    if event.kind is EventKind.WAIT_PROGRESSED:
        return _due_of_leaf(event, condition)
    by_time = event.kind is EventKind.RESUMED and event.payload.get("cause") in {"timer", "timeout"}
    by_time = by_time or (event.kind in _ENDS and event.actor == "worker" and event.payload.get("reason") == TIMED_OUT)
    if not by_time:
        return None
    # Of a composite the part that was due has an entry of its own just before, and was held against its own time there.
    due = due_times(condition, {})
    return due[0][0] if due else None


def _due_of_leaf(event: FlowEvent, condition: WaitCondition) -> Micros | None:
    """Return when the part that was satisfied here was due.

    None where it was not time that satisfied it.
    """
    named = str(event.payload.get("leaf"))
    for node in nodes(condition):
        if named not in {str(node.leaf), f"node:{node.number}"}:
            continue
        timed_out = event.actor == "worker" and event.payload.get("payload") == {"timed_out": True}
        at = ends_at(node.condition) if timed_out or isinstance(node.condition, Timer) else None
        return None if at is None else to_micros(at)
    return None


def _when(at: Micros | None) -> str:
    return "at no time" if at is None else f"at {to_the_second(at)}"
