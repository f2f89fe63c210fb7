"""The status machine of a flow, as a literal table (SEMANTICS 2).

The status answers one question: who moves next? `created`: somebody starts it. `running`: its controller, which is a program of somebody
else and may take a week. `waiting`: the world, with a reply, a time, the end of another flow or a person. The other three: nobody, ever.

A status changes by a journal entry and in no other way. A command has a target (`decide.TARGET`), the table `NEXT` says whether an edge
leads there, and `STATUS_AFTER` says which status an entry leaves: so folding the journal gives the row.

What one might look for in the table, and why it is not there:

- A cancel request is no status. It may come in any open status, and must not lose which one that was: it is a flag that stays set, and
  leaves `cancelled` as the only way on.
- A wait does not follow a wait. Each ends first, so that each has a generation (`Flow.wait_id`), by which a late timer is recognised.
- A waiting flow cannot finish. It promised to take replies; who ends it well has to resume it first, which closes what it waits for.

A doubt: the table knows statuses, not commands. Two edges lead to `running`, and that only `run` may take the one from `created` and only
`resume` the one from `waiting` is said in `decide._not_now`; so is that a run may be observed after the end. A table of status and command
would have all of it in one place, most of its cells empty. With one more exception of this kind it would be the better one.
"""

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
"""The status that a journal entry leaves; kinds that are not listed leave it as it was."""
