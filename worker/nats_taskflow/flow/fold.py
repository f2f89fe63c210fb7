"""Apply a journal entry to a flow.

Folding a flow's whole journal gives exactly its row (SEMANTICS 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from nats_taskflow.flow.lifecycle import STATUS_AFTER, EventKind, FlowStatus
from nats_taskflow.flow.model import Flow, FlowEvent

_CREATED_WITH = ("controller_id", "goal", "owner_session_key", "requester_origin", "current_step", "state_json")


def merge(state: Any, patch: Any) -> Any:
    """Return `state` with the top-level keys of `patch` over its own.

    Unless both are objects, the patch replaces the state (SEMANTICS 1).
    """
    if isinstance(state, dict) and isinstance(patch, dict):
        return {**state, **patch}
    return patch


def fold(flow: Flow | None, event: FlowEvent) -> Flow:
    """Return the flow as it is after `event`. `flow` is None before `created`."""
    if flow is None:
        return _created(event)
    changes: dict[str, Any] = {"seq": event.seq}
    if event.kind is not EventKind.STEP_OBSERVED:
        changes |= {"revision": event.revision, "updated_us": event.at_us}
    if event.kind in STATUS_AFTER:
        changes["status"] = STATUS_AFTER[event.kind]
        changes |= _wait_after(event)
    elif event.kind is EventKind.WAIT_PROGRESSED:
        changes["progress"] = {**(flow.progress or {}), event.payload["leaf"]: event.payload.get("payload")}
    elif event.kind is EventKind.CANCEL_REQUESTED:
        changes["cancel_requested"] = True
    if "patch" in event.payload:
        changes["state_json"] = merge(flow.state_json, event.payload["patch"])
    if event.payload.get("current_step") is not None:
        changes["current_step"] = event.payload["current_step"]
    return replace(flow, **changes)


def fold_journal(events: Iterable[FlowEvent]) -> Flow | None:
    """Fold a whole journal, oldest first; None for an empty one."""
    flow: Flow | None = None
    for event in events:
        flow = fold(flow, event)
    return flow


def _created(event: FlowEvent) -> Flow:
    """Return the flow that a `created` entry describes."""
    return Flow(
        id=event.flow_id,
        status=FlowStatus.CREATED,
        created_us=event.at_us,
        updated_us=event.at_us,
        seq=event.seq,
        parent_flow_id=event.payload.get("parent_flow_id"),
        hops=event.payload.get("hops", 0),
        **{name: event.payload[name] for name in _CREATED_WITH},
    )


def _wait_after(event: FlowEvent) -> dict[str, Any]:
    # Parking opens a wait, every other change of status closes it.
    if event.kind is EventKind.WAITING:
        return {"wait_json": event.payload["wait"], "wait_id": event.revision, "parked_us": event.at_us, "progress": None}
    return {"wait_json": None, "wait_id": None, "parked_us": None, "progress": None}
