"""The worker's answers: flows, steps, entries and waits as clients see them.

See CONTRACT 3. Times are RFC 3339 UTC.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.flow.conditions import due_times, from_value
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.units import rfc3339


class FlowShown(msgspec.Struct, frozen=True, kw_only=True):
    """A flow as clients see it (CONTRACT 3).

    `state_omitted`: the state is left out. Either the broker could not carry the answer with it, or this is an old answer that is given
    again, and its state is too far back in the journal.
    """

    id: str
    controller_id: str
    goal: str
    owner_session_key: str
    requester_origin: str
    current_step: str
    status: FlowStatus
    cancel_requested: bool
    state: Any = None
    wait: dict[str, Any] | None = None
    revision: int
    created_at: str
    updated_at: str
    parent_flow_id: str | UnsetType = UNSET
    state_omitted: bool | UnsetType = UNSET


class StepShown(msgspec.Struct, frozen=True, kw_only=True):
    """One observed run."""

    id: str
    flow_id: str
    runtime: str
    child_session_key: str | None
    run_id: str
    task: str
    status: FlowStepStatus
    result: Any
    created_at: str
    updated_at: str


class EventShown(msgspec.Struct, frozen=True, kw_only=True):
    """One journal entry.

    `payload_omitted`: the broker could not carry the answer with the payload in it.
    """

    seq: int
    revision: int
    kind: EventKind
    payload: dict[str, Any] = {}
    at: str
    actor: str
    cause: str | None
    payload_omitted: bool | UnsetType = UNSET


class WaitShown(msgspec.Struct, frozen=True, kw_only=True):
    """What one flow waits for, and how long.

    `since`: when it parked. `until`: the next timer or deadline (null: only an event or a person ends it). `progress` holds what satisfied
    leaves of a composite wait so far, by leaf index.
    """

    flow_id: str
    controller_id: str
    current_step: str
    revision: int
    wait: dict[str, Any] | None
    progress: dict[str, Any] | None
    since: str | None
    until: str | None


class ErrorShown(msgspec.Struct, frozen=True, kw_only=True):
    """Why an operation was refused.

    `code` is for programs, `message` for people, `details` for both.
    """

    code: str
    message: str
    details: dict[str, Any]


class CancelledChildren(msgspec.Struct, frozen=True, kw_only=True):
    """Which flows are cancelled with their parent.

    How many were in the same transaction; at least how many are going to be (those whose parent is cancelled by now, not what is below
    them); and the first 100 by id.
    """

    done: int
    pending: int
    ids: list[str]


class AppliedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a command that took effect (or had taken effect before)."""

    ok: bool = True
    outcome: str = "applied"
    flow: FlowShown
    step: StepShown | UnsetType = UNSET
    cancelled_children: CancelledChildren | UnsetType = UNSET
    state_omitted: bool | UnsetType = UNSET


class RefusedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a command that changed nothing."""

    ok: bool = False
    error: ErrorShown


class ReplyOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a reply (SEMANTICS R14), with the flow it met."""

    ok: bool
    outcome: str
    flow_id: str | UnsetType = UNSET
    revision: int | UnsetType = UNSET


class FlowPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `list_mine`."""

    ok: bool = True
    count: int
    flows: list[FlowShown]
    next_cursor: str | None = None
    state_omitted: bool | UnsetType = UNSET


class StepPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `steps`."""

    ok: bool = True
    steps: list[StepShown]
    next_cursor: str | None = None


class StepAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `step`."""

    ok: bool = True
    step: StepShown


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `history`, in the order that was asked for."""

    ok: bool = True
    events: list[EventShown]
    next_cursor: str | None = None
    payload_omitted: bool | UnsetType = UNSET


class WaitPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `waits`."""

    ok: bool = True
    waits: list[WaitShown]
    next_cursor: str | None = None


def show_flow(flow: Flow) -> FlowShown:
    """Return the flow as clients see it."""
    return FlowShown(
        id=flow.id,
        controller_id=flow.controller_id,
        goal=flow.goal,
        owner_session_key=flow.owner_session_key,
        requester_origin=flow.requester_origin,
        current_step=flow.current_step,
        status=flow.status,
        cancel_requested=flow.cancel_requested,
        state=flow.state_json,
        wait=flow.wait_json,
        revision=flow.revision,
        created_at=rfc3339(flow.created_us),
        updated_at=rfc3339(flow.updated_us),
        parent_flow_id=flow.parent_flow_id if flow.parent_flow_id is not None else UNSET,
    )


def show_step(step: FlowStep) -> StepShown:
    """Return the observed run as clients see it."""
    return StepShown(
        id=step.id,
        flow_id=step.flow_id,
        runtime=step.runtime,
        child_session_key=step.child_session_key,
        run_id=step.run_id,
        task=step.task,
        status=step.status,
        result=step.result_json,
        created_at=rfc3339(step.created_us),
        updated_at=rfc3339(step.updated_us),
    )


def show_event(event: FlowEvent) -> EventShown:
    """Return the journal entry as clients see it."""
    return EventShown(
        seq=event.seq,
        revision=event.revision,
        kind=event.kind,
        payload=event.payload,
        at=rfc3339(event.at_us),
        actor=event.actor,
        cause=event.cause,
    )


def show_wait(flow: Flow) -> WaitShown:
    """Return what a waiting flow waits for as clients see it.

    A condition that cannot be read is shown without its end (R13).
    """
    condition = from_value(flow.wait_json)
    due = due_times(condition, flow.progress or {}) if condition is not None else []
    return WaitShown(
        flow_id=flow.id,
        controller_id=flow.controller_id,
        current_step=flow.current_step,
        revision=flow.revision,
        wait=flow.wait_json,
        progress=flow.progress,
        since=rfc3339(flow.parked_us) if flow.parked_us is not None else None,
        until=rfc3339(due[0][0]) if due else None,
    )


class AdminAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer begins with."""

    ok: bool = True
