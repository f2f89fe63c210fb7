"""Say which status may follow which: the status machine of SEMANTICS 2 as a literal table."""

from __future__ import annotations

from enum import StrEnum


class FlowStatus(StrEnum):
    """Where a flow is in its life."""

    CREATED = "created"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    FAILED = "failed"


NEXT: dict[FlowStatus, frozenset[FlowStatus]] = {
    FlowStatus.CREATED: frozenset({FlowStatus.RUNNING, FlowStatus.CANCELLED}),
    FlowStatus.RUNNING: frozenset({FlowStatus.WAITING, FlowStatus.FINISHED, FlowStatus.FAILED, FlowStatus.CANCELLED}),
    FlowStatus.WAITING: frozenset({FlowStatus.RUNNING, FlowStatus.FAILED, FlowStatus.CANCELLED}),
    FlowStatus.CANCELLED: frozenset(),
    FlowStatus.FINISHED: frozenset(),
    FlowStatus.FAILED: frozenset(),
}

TERMINAL: frozenset[FlowStatus] = frozenset(status for status, following in NEXT.items() if not following)


class FlowStepStatus(StrEnum):
    """How far an observed run has come."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EventKind(StrEnum):
    """What a journal entry records."""

    CREATED = "created"
    STARTED = "started"
    STATE_UPDATED = "state_updated"
    WAITING = "waiting"
    WAIT_PROGRESSED = "wait_progressed"
    RESUMED = "resumed"
    FINISHED = "finished"
    FAILED = "failed"
    CANCEL_REQUESTED = "cancel_requested"
    CANCELLED = "cancelled"
    STEP_OBSERVED = "step_observed"


STATUS_AFTER: dict[EventKind, FlowStatus] = {
    EventKind.CREATED: FlowStatus.CREATED,
    EventKind.STARTED: FlowStatus.RUNNING,
    EventKind.WAITING: FlowStatus.WAITING,
    EventKind.RESUMED: FlowStatus.RUNNING,
    EventKind.FINISHED: FlowStatus.FINISHED,
    EventKind.FAILED: FlowStatus.FAILED,
    EventKind.CANCELLED: FlowStatus.CANCELLED,
}
"""The status a journal entry leaves behind; kinds that are not listed leave it as it was."""
