"""End waits and flows: satisfy a leaf, resume, time out, fail, cancel.

The leaf that wins closes every sibling (SEMANTICS R10, R11).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from nats_taskflow.errors import FlowError, IllegalTransition, Internal, InvalidRequest, TooLarge
from nats_taskflow.flow.conditions import (
    COMPOSITES,
    ExternalEvent,
    Manual,
    Node,
    Timer,
    WaitCondition,
    due_times,
    from_value,
    holds,
    nodes,
    open_nodes,
    to_value,
)
from nats_taskflow.flow.decision import Decision, Draft, OutcomeName
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import DelegateMessage, Flow, Pair
from nats_taskflow.flow.payload_check import payload_refusal
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.request_headers import asker
from nats_taskflow.flow.stimuli import Caller, ResumeFlow
from nats_taskflow.units import Micros, rfc3339

TIMED_OUT = "wait timed out"


class EndedBy(msgspec.Struct, frozen=True, kw_only=True):
    """What ended a wait, or satisfied a leaf of it.

    It becomes `state_json.resume_meta` (SEMANTICS R12). Two fields go into the journal: `reason`, where a person gave one, and `matched`,
    the pair of a reply that a person gave to another wait.
    """

    cause: Literal["event", "timer", "timeout", "manual"]
    pair: Pair | None = None
    event_id: str | None = None
    caller: Caller | None = None
    reason: str | None = None
    matched: Pair | None = None

    @property
    def journal_fields(self) -> dict[str, Any]:
        """Return the `reason` and `matched` of the journal entry, where there are any."""
        reason = {} if self.reason is None else {"reason": self.reason}
        return reason if self.matched is None else reason | {"matched": {"topic": self.matched[0], "correlation_id": self.matched[1]}}

    def meta(self, at: Micros) -> dict[str, Any]:
        """Return the `resume_meta` object."""
        topic, correlation_id = self.pair or (None, None)
        return {"cause": self.cause, "topic": topic, "correlation_id": correlation_id, "event_id": self.event_id, "at": rfc3339(at)}


def condition_of(flow: Flow) -> WaitCondition:
    """Return what a waiting flow waits for.

    Raises `Internal` for a stored condition that cannot be read (SEMANTICS R13).
    """
    try:
        return flow.condition
    except msgspec.ValidationError as bad:
        message = f"the stored wait condition of flow {flow.id} cannot be read: {bad}"
        raise Internal(message, flow_id=flow.id) from bad


def due_of(flow: Flow) -> Micros | None:
    """Return when time alone acts on the flow next, or None.

    A timer or a deadline does, and a pending cancel at once (SEMANTICS 2, 3).
    """
    if flow.wait_json is None:
        return None
    if flow.cancel_requested:
        return flow.updated_us
    due = due_times(condition_of(flow), flow.progress or {})
    return due[0][0] if due else None


def satisfy(draft: Draft, leaf: int, payload: Any, source: EndedBy) -> OutcomeName:
    """Satisfy one leaf of the flow's wait.

    A single wait resumes. A composite progresses, and resumes once it holds (SEMANTICS R11).
    """
    flow = draft.flow
    condition = condition_of(flow)
    if not isinstance(condition, COMPOSITES):
        resume(draft, payload, source)
        return "resumed"
    value = None if payload is msgspec.UNSET else payload
    flow = draft.add(
        EventKind.WAIT_PROGRESSED, {"leaf": str(leaf), "payload": value, **source.journal_fields}, pair=source.pair, caller=source.caller
    )
    return _resume_if_held(draft, condition, flow.progress or {}, source)


def _resume_if_held(draft: Draft, condition: WaitCondition, progress: dict[str, Any], source: EndedBy) -> OutcomeName:
    """Resume a composite wait if it holds, with its leaves' payloads by index.

    See SEMANTICS R12. Where it does not hold yet, every leaf below a part that holds is closed, its losers too (R10).
    """
    if not holds(condition, progress):
        open_leaves = {node.leaf for node in open_nodes(condition, progress)}
        draft.satisfied = [node.leaf for node in nodes(condition) if node.leaf is not None and node.leaf not in open_leaves]
        return "progressed"
    resume(draft, {key: value for key, value in progress.items() if key.isdigit()}, source)
    return "resumed"


def resume(draft: Draft, payload: Any, source: EndedBy) -> Flow:
    """Move waiting → running. A plain timer leaves the state alone (SEMANTICS R12)."""
    entry: dict[str, Any] = {"cause": source.cause, **source.journal_fields}
    if source.cause != "timer" or payload is not msgspec.UNSET:
        event = {} if payload is msgspec.UNSET else {"resume_event": payload}
        entry["patch"] = {**event, "resume_meta": source.meta(draft.now)}
    return draft.add(EventKind.RESUMED, entry, pair=source.pair, caller=source.caller)


def fail(draft: Draft, reason: str) -> Flow:
    """End the flow as failed, with the reason in its state (SEMANTICS 2)."""
    failure = {"reason": reason, "at": rfc3339(draft.now)}
    return draft.add(EventKind.FAILED, {"reason": reason, "patch": {"failure": failure}})


def cancel(draft: Draft, reason: str | None, *, cascade: bool = True) -> Flow:
    """End the flow as cancelled, and notify the delegate that it waits for.

    A delegate is notified only where it wants to know (SEMANTICS 5).
    """
    draft.outgoing.extend(_notices(draft.flow, reason, draft.trace))
    return draft.add(EventKind.CANCELLED, {"reason": reason} if cascade else {"reason": reason, "cascade": False})


def _notices(flow: Flow, reason: str | None, trace: str | None) -> list[DelegateMessage]:
    """Return the cancel notice for the delegation that the flow waits for, if any.

    `trace` is the traceparent of what cancels it.
    """
    condition = from_value(flow.wait_json) if flow.wait_json is not None else None
    leaf = condition if isinstance(condition, ExternalEvent) else None
    if leaf is None or leaf.cancel_to is None:
        return []
    return [cancel_notice(flow, leaf.correlation_id or "", leaf.cancel_to, reason, trace)]


def cancel_notice(flow: Flow, correlation_id: str, subject: str, reason: str | None, trace: str | None = None) -> DelegateMessage:
    """Return the cancel notice for one delegation."""
    notice = {"flow_id": flow.id, "correlation_id": correlation_id, "reason": reason}
    headers = asker(flow.owner_session_key, flow.id, correlation_id, trace)
    body = msgspec.json.encode(notice)
    return DelegateMessage(flow_id=flow.id, wait_id=flow.wait_id or 0, kind="cancel", subject=subject, headers=headers, body=body)


def pass_time(draft: Draft, now: Micros) -> OutcomeName:
    """Let all that is due by `now` happen, earliest first, until the wait ends.

    Returns `applied` when the wait ended, `progressed` when a composite still waits, `unmatched` when nothing was due.
    """
    flow = draft.flow
    condition = condition_of(flow)
    outcome: OutcomeName = "unmatched"
    # Computed anew each time: what one deadline closes is no longer due (R10).
    while (due := due_times(condition, draft.flow.progress or {})) and due[0][0] <= now:
        _fire(draft, condition, due[0][1])
        outcome = "progressed"
        if draft.flow.wait_id != flow.wait_id:
            return "applied"
    return outcome


def _fire(draft: Draft, condition: WaitCondition, node: Node) -> None:
    """Fire what is due at one node.

    A timer satisfies its leaf, a deadline does what `on_timeout` says.
    """
    part, root = node.condition, node.number == 0
    if isinstance(part, Timer):
        payload = msgspec.UNSET if root else {"at": to_value(part)["at"]}
        satisfy(draft, node.leaf or 0, payload, EndedBy(cause="timer"))
        return
    pair = (part.topic, part.correlation_id or "") if isinstance(part, ExternalEvent) else None
    source = EndedBy(cause="timeout", pair=pair)
    if part.on_timeout == "fail":
        fail(draft, TIMED_OUT)
    elif part.on_timeout == "cancel":
        cancel(draft, TIMED_OUT)
    elif root:
        resume(draft, {"timed_out": True}, source)
    elif node.leaf is not None:
        satisfy(draft, node.leaf, {"timed_out": True}, source)
    else:
        flow = draft.add(EventKind.WAIT_PROGRESSED, {"leaf": f"node:{node.number}", "payload": {"timed_out": True}})
        _resume_if_held(draft, condition, flow.progress or {}, source)


def answer(command: ResumeFlow, flow: Flow, now: Micros, policy: Policy) -> Decision | FlowError:
    """Satisfy the manual leaf that `command.leaf` names by number or name.

    Its payload is the command's patch.
    """
    condition = condition_of(flow)
    leaf = _manual_leaf(condition, command.leaf)
    if leaf is None:
        return InvalidRequest(f"the wait of flow {flow.id} has no manual leaf {command.leaf!r}", path="/leaf", leaf=command.leaf)
    if all(node.leaf != leaf for node in open_nodes(condition, flow.progress or {})):
        return IllegalTransition(f"leaf {command.leaf!r} of flow {flow.id} is answered already, or not needed any more", leaf=command.leaf)
    refusal = payload_refusal(condition, flow, leaf, command.patch, policy)
    if refusal is not None:
        return TooLarge(refusal[1], path="/patch")
    draft = Draft(flow, command.caller, now)
    satisfy(draft, leaf, command.patch, EndedBy(cause="manual", reason=command.reason))
    return Decision(outcome="applied", flow=draft.flow, changes=(draft.change(),))


def _manual_leaf(condition: WaitCondition, leaf: int | str | None) -> int | None:
    """Return the number of the manual leaf that has this number or name, or None."""
    for node in nodes(condition):
        if isinstance(node.condition, Manual) and leaf in (node.leaf, node.condition.name):
            return node.leaf
    return None
