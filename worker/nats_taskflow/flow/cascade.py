"""Resume the flows that wait for an ended flow, and cancel its children.

The children are cancelled only where the flow was cancelled itself (SEMANTICS 3, 4).
"""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.flow.conditions import FLOW_ENDS, from_value, open_nodes
from nats_taskflow.flow.decision import Decision, Draft, FlowChange, View, readable_flow
from nats_taskflow.flow.end import EndedBy, cancel, satisfy
from nats_taskflow.flow.model import Flow, Waiter
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Caller, EndOfFlow, ParentCancelled
from nats_taskflow.units import Micros

_AROUND = 1024
"""Bytes for what comes beside the state."""


def describe_end(flow: Flow, watcher: Flow, policy: Policy) -> dict[str, Any]:
    """Return the payload with which an ended flow resumes one that waits for it.

    It has the ended flow's state, unless that is too large beside what the waiting flow has already.
    """
    end = {"flow_id": flow.id, "status": flow.status.value}
    gathered = len(msgspec.json.encode(flow.state_json)) + len(msgspec.json.encode(watcher.progress or {}))
    return end | ({"state": flow.state_json} if gathered <= policy.max_event_bytes - _AROUND else {"state_omitted": True})


def resume_watchers(ended: EndOfFlow, view: View, now: Micros, policy: Policy) -> Decision:
    """Satisfy every open wait for the end of this flow."""
    flow = view.flow(ended.flow_id)
    if flow is None or not flow.terminal:
        return Decision(outcome="unmatched", flow=flow)
    by = Caller(actor="worker", cause=f"{flow.id}:{flow.seq}", trace=ended.trace)
    changes: list[FlowChange] = []
    for waiter in view.waiters((FLOW_ENDS, flow.id)):
        watcher = readable_flow(view, waiter.flow_id)
        if watcher is None or watcher.cancel_requested or not _still_waits(watcher, waiter):
            continue
        draft = Draft(watcher, by, now)
        satisfy(draft, waiter.leaf, describe_end(flow, watcher, policy), EndedBy(cause="event", pair=("flow", flow.id), event_id=by.cause))
        changes.append(draft.change())
    return Decision(outcome="applied", flow=flow, changes=tuple(changes))


def _still_waits(watcher: Flow, waiter: Waiter) -> bool:
    """Return whether the leaf is still open; the loaded row may predate this batch.

    A condition that cannot be read counts as closed (R13).
    """
    condition = from_value(watcher.wait_json)
    if watcher.wait_id != waiter.wait_id or condition is None:
        return False
    return any(node.leaf == waiter.leaf for node in open_nodes(condition, watcher.progress or {}))


def cancel_children(parent: ParentCancelled, view: View, now: Micros) -> Decision:
    """Cancel the children that have not ended."""
    flow = view.flow(parent.flow_id)
    by = Caller(actor="worker", cause=f"{parent.flow_id}:{flow.seq}" if flow is not None else None, trace=parent.trace)
    changes: list[FlowChange] = []
    for child_id in view.children(parent.flow_id):
        child = readable_flow(view, child_id)
        if child is not None and not child.terminal:
            draft = Draft(child, by, now)
            cancel(draft, f"parent flow {parent.flow_id} was cancelled")
            changes.append(draft.change())
    return Decision(outcome="applied", flow=flow, changes=tuple(changes))
