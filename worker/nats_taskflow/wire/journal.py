"""The payload of each kind of journal entry, as events and histories publish it.

Only the schemas are made from these types; the payloads themselves stay plain objects on their way.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.flow.lifecycle import EventKind, FlowStepStatus


class CreatedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What the flow was created with.

    `hops`: how many flows lie between it and the first of its line.
    """

    controller_id: str
    goal: str
    owner_session_key: str
    requester_origin: str
    current_step: str
    state_json: Any
    mirrored: bool
    parent_flow_id: str | UnsetType = UNSET
    hops: int | UnsetType = UNSET


class StartedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing: the kind says it all."""


class StateUpdatedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What was merged into the state, and the step where one was named.

    Its top-level keys went over the old ones.
    """

    patch: Any
    current_step: str | UnsetType = UNSET


class WaitingPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What the flow waits for, as the worker understood it.

    Times are in UTC, durations became times, correlation ids are filled in.
    """

    wait: dict[str, Any]


class ReplyPair(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply had come for."""

    topic: str
    correlation_id: str


class WaitProgressedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a combined wait came true, and with what.

    `leaf` is its number, or `node:<number>` for a part that timed out. `reason` and `matched` are there where an operator gave it a reply
    that had come for something else.
    """

    leaf: str
    payload: Any
    reason: str | UnsetType = UNSET
    matched: ReplyPair | UnsetType = UNSET


class ResumedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What ended the wait, and what was merged into the state.

    `reason`, `matched`: as an operator said it.
    """

    cause: Literal["event", "timer", "timeout", "manual"]
    patch: Any | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    matched: ReplyPair | UnsetType = UNSET


class FinishedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What was merged into the state at the end, where something was."""

    patch: Any | UnsetType = UNSET


class FailedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Why it failed; the patch keeps it in the state."""

    reason: str
    patch: Any


class CancelRequestedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Why somebody asked it to end, where they said so."""

    reason: str | None


class CancelledPayload(msgspec.Struct, frozen=True, kw_only=True):
    """Why it was called off, where somebody said so.

    `cascade` is false where its children were left alone.
    """

    reason: str | None
    cascade: bool | UnsetType = UNSET


class StepObservedPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one run."""

    id: str
    run_id: str
    task: str
    status: FlowStepStatus
    child_session_key: str | None
    result: Any


PAYLOADS: dict[EventKind, type[msgspec.Struct]] = {
    EventKind.CREATED: CreatedPayload,
    EventKind.STARTED: StartedPayload,
    EventKind.STATE_UPDATED: StateUpdatedPayload,
    EventKind.WAITING: WaitingPayload,
    EventKind.WAIT_PROGRESSED: WaitProgressedPayload,
    EventKind.RESUMED: ResumedPayload,
    EventKind.FINISHED: FinishedPayload,
    EventKind.FAILED: FailedPayload,
    EventKind.CANCEL_REQUESTED: CancelRequestedPayload,
    EventKind.CANCELLED: CancelledPayload,
    EventKind.STEP_OBSERVED: StepObservedPayload,
}
