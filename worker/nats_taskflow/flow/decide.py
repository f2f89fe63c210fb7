"""Decide what a stimulus does, or why it is refused.

Deciding changes nothing: `view.World.apply` and the store do. A refusal leaves no trace (SEMANTICS 2). The checks of a command come in one
order: the flow is there and the caller's, it has not ended, it is not being cancelled, it is at the revision that the caller saw, and the
table has the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats_taskflow.errors import (
    AlreadyTerminal,
    CancelPending,
    Conflict,
    FlowError,
    Forbidden,
    IllegalTransition,
    NotFound,
    RevisionMismatch,
)
from nats_taskflow.flow.cascade import cancel_children, resume_watchers
from nats_taskflow.flow.decision import Decision, Draft, View
from nats_taskflow.flow.delegate import delegate, send_again
from nats_taskflow.flow.end import EndedBy, answer, cancel, fail, pass_time
from nats_taskflow.flow.fold import merge
from nats_taskflow.flow.held import expire_held, match_held
from nats_taskflow.flow.lifecycle import NEXT, EventKind, FlowStatus
from nats_taskflow.flow.match import match_reply
from nats_taskflow.flow.model import Flow, FlowStep
from nats_taskflow.flow.park import park
from nats_taskflow.flow.payload_check import too_large
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.quota import within_quota
from nats_taskflow.flow.stimuli import (
    WORKER,
    AdvanceFlow,
    CancelFlow,
    Command,
    DeadlinePassed,
    DelegateFlow,
    EndOfFlow,
    ExpireHeld,
    FailFlow,
    FinishFlow,
    MatchHeld,
    ObserveStep,
    ParentCancelled,
    ParkFlow,
    Reply,
    RequestCancel,
    RequestNotStored,
    ResumeFlow,
    RunFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.units import Micros

TARGET: dict[type[Command], FlowStatus] = {
    RunFlow: FlowStatus.RUNNING,
    ParkFlow: FlowStatus.WAITING,
    DelegateFlow: FlowStatus.WAITING,
    ResumeFlow: FlowStatus.RUNNING,
    FinishFlow: FlowStatus.FINISHED,
    FailFlow: FlowStatus.FAILED,
    CancelFlow: FlowStatus.CANCELLED,
}
"""The status each command leads to; commands that are not listed leave it as it is."""


def decide(stimulus: Stimulus, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Return what the stimulus does at `now`, or its refusal.

    Raises `Internal` for a row that cannot be read (R13).
    """
    if isinstance(stimulus, Reply | RequestNotStored):
        return match_reply(stimulus, view, now, policy) if isinstance(stimulus, Reply) else send_again(stimulus, view)
    if isinstance(stimulus, DeadlinePassed):
        return _pass_deadline(stimulus, view, now)
    if isinstance(stimulus, StartFlow):
        return within_quota(stimulus, _start(stimulus, view, now), view, policy)
    if isinstance(stimulus, EndOfFlow):
        return resume_watchers(stimulus, view, now, policy)
    if isinstance(stimulus, ParentCancelled):
        return cancel_children(stimulus, view, now)
    if isinstance(stimulus, MatchHeld):
        return match_held(stimulus, view, now, policy)
    if isinstance(stimulus, ExpireHeld):
        return expire_held(stimulus, view)
    decision = _command(stimulus, view, now, policy)
    return within_quota(stimulus, decision, view, policy) if isinstance(stimulus, AdvanceFlow | ResumeFlow) else decision


def _command(command: Command, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Decide a command on an existing flow."""
    flow = view.flow(command.flow_id)
    if flow is None:
        return NotFound(f"there is no flow {command.flow_id}", flow_id=command.flow_id)
    refusal = _not_yours(command, flow) or _not_now(command, flow)
    if refusal is not None:
        return refusal
    if isinstance(command, ParkFlow):
        return park(command, flow, view, now, policy)
    if isinstance(command, DelegateFlow):
        return delegate(command, flow, view, now, policy)
    if isinstance(command, ResumeFlow) and command.leaf is not None:
        return answer(command, flow, now, policy)
    if isinstance(command, RequestCancel) and flow.cancel_requested:
        return Decision(outcome="applied", flow=flow)
    draft = Draft(flow, command.caller, now)
    _CARRY_OUT[type(command)](draft, command, view)
    return too_large(command, flow, draft.flow, policy) or Decision(
        outcome="applied", flow=draft.flow, changes=(draft.change(),), step=draft.step
    )


def _not_yours(command: Command, flow: Flow) -> FlowError | None:
    if command.caller.owner is None or command.caller.owner == flow.owner_session_key:
        return None
    return Forbidden(f"flow {flow.id} belongs to another agent or session", flow_id=flow.id)


def _not_now(command: Command, flow: Flow) -> FlowError | None:
    """Refuse what the flow's status, cancel intent or revision does not allow.

    Runs may be observed while a cancellation is pending, for they are winding down, and after the flow has ended: a run often reports its
    end a moment after its flow's.
    """
    if flow.terminal and not isinstance(command, ObserveStep):
        return AlreadyTerminal(f"flow {flow.id} is {flow.status} already", flow_id=flow.id, status=flow.status.value)
    if flow.cancel_requested and not isinstance(command, CancelFlow | RequestCancel | ObserveStep):
        return CancelPending(f"cancellation of flow {flow.id} was requested: only cancel is possible now", flow_id=flow.id)
    if command.expected_revision is not None and command.expected_revision != flow.revision:
        return RevisionMismatch(
            f"flow {flow.id} is at revision {flow.revision}, not {command.expected_revision}: read it again",
            expected=command.expected_revision,
            actual=flow.revision,
        )
    target = TARGET.get(type(command))
    wrong_start = isinstance(command, ResumeFlow) and flow.status is not FlowStatus.WAITING
    wrong_start = wrong_start or (isinstance(command, RunFlow) and flow.status is not FlowStatus.CREATED)
    stale = isinstance(command, ResumeFlow) and command.wait_id not in (None, flow.wait_id)
    if wrong_start or stale or (target is not None and target not in NEXT[flow.status]):
        verb = type(command).__name__.removesuffix("Flow").lower()
        details: dict[str, Any] = {"from": flow.status.value, "to": target.value if target else None}
        return IllegalTransition(f"cannot {verb} flow {flow.id}: it is {flow.status}", **details)
    return None


def _run(draft: Draft, _command: RunFlow, _view: View) -> None:
    draft.add(EventKind.STARTED, {})


def _advance(draft: Draft, command: AdvanceFlow, _view: View) -> None:
    step = {} if command.next_step is None else {"current_step": command.next_step}
    draft.add(EventKind.STATE_UPDATED, {"patch": command.patch, **step})


def _resume(draft: Draft, command: ResumeFlow, _view: View) -> None:
    """Move waiting → running on request.

    The caller's patch goes over the worker's own keys. Only a state that is an object can have these.
    """
    meta = {"resume_meta": EndedBy(cause="manual").meta(draft.now)}
    entry: dict[str, Any] = {"cause": "manual"}
    if command.patch is not None or isinstance(draft.flow.state_json, dict):
        entry["patch"] = merge(meta, command.patch) if command.patch is not None else meta
    if command.reason is not None:
        entry["reason"] = command.reason
    draft.add(EventKind.RESUMED, entry)


def _finish(draft: Draft, command: FinishFlow, _view: View) -> None:
    draft.add(EventKind.FINISHED, {} if command.final_state is None else {"patch": command.final_state})


def _fail(draft: Draft, command: FailFlow, _view: View) -> None:
    fail(draft, command.reason)


def _request_cancel(draft: Draft, command: RequestCancel, _view: View) -> None:
    draft.add(EventKind.CANCEL_REQUESTED, {"reason": command.reason})


def _cancel(draft: Draft, command: CancelFlow, _view: View) -> None:
    cancel(draft, command.reason, cascade=command.cascade)


def _observe(draft: Draft, command: ObserveStep, view: View) -> None:
    """Insert or update the run that has this `run_id`.

    Without a new child session key the known one stays (SEMANTICS 1).
    """
    before = view.step(command.flow_id, command.run_id)
    draft.step = FlowStep(
        id=before.id if before else command.step_id,
        flow_id=command.flow_id,
        run_id=command.run_id,
        task=command.task,
        status=command.status,
        created_us=before.created_us if before else draft.now,
        updated_us=max(draft.now, before.updated_us) if before else draft.now,
        child_session_key=command.child_session_key or (before.child_session_key if before else None),
        result_json=command.result_json,
    )
    entry: dict[str, Any] = {"id": draft.step.id, "run_id": command.run_id, "task": command.task, "status": command.status.value}
    entry |= {"child_session_key": draft.step.child_session_key, "result": command.result_json}
    draft.add(EventKind.STEP_OBSERVED, entry)


_CARRY_OUT: dict[type[Command], Callable[[Draft, Any, View], None]] = {
    RunFlow: _run,
    AdvanceFlow: _advance,
    ResumeFlow: _resume,
    FinishFlow: _finish,
    FailFlow: _fail,
    RequestCancel: _request_cancel,
    CancelFlow: _cancel,
    ObserveStep: _observe,
}


def _start(command: StartFlow, view: View, now: Micros) -> Decision | FlowError:
    """Create a flow, or return the one that its key or id started before.

    See SEMANTICS 6.
    """
    known = _started_before(command, view) or _no_parent(command, view)
    if known is not None:
        return known
    draft = Draft(None, command.caller, now)
    draft.idempotency_key = command.idempotency_key
    payload = {
        "controller_id": command.controller_id,
        "goal": command.goal,
        "owner_session_key": command.owner_session_key,
        "requester_origin": command.requester_origin,
        "current_step": command.current_step,
        "state_json": command.state_json,
        "mirrored": command.mirrored,
    }
    payload |= {"parent_flow_id": command.parent_flow_id} if command.parent_flow_id is not None else {}
    if command.hops:
        payload["hops"] = command.hops
    draft.add(EventKind.CREATED, payload, flow_id=command.flow_id)
    if not command.hold:
        draft.add(EventKind.STARTED, {})
    return Decision(outcome="applied", flow=draft.flow, changes=(draft.change(),))


def _no_parent(command: StartFlow, view: View) -> FlowError | None:
    """Refuse a child whose parent cannot have one.

    The parent is not there, is somebody else's, has ended or is being cancelled.
    """
    if command.parent_flow_id is None:
        return None
    parent = view.flow(command.parent_flow_id)
    if parent is None:
        return NotFound(f"there is no flow {command.parent_flow_id} to be the parent", flow_id=command.parent_flow_id)
    if parent.owner_session_key != command.owner_session_key:
        return Forbidden(f"flow {parent.id} belongs to another agent or session", flow_id=parent.id)
    return _not_now(Command(flow_id=parent.id), parent)


def _started_before(command: StartFlow, view: View) -> Decision | FlowError | None:
    """Return the flow that the key or the client's id names already.

    Refuses a flow that is another's, or that was started differently.
    """
    keyed = view.by_key(command.owner_session_key, command.idempotency_key) if command.idempotency_key is not None else None
    if keyed is not None:
        return Decision(outcome="applied", flow=keyed)
    flow = None if command.minted else view.flow(command.flow_id)
    if flow is None and view.was_pruned(command.flow_id):  # its events would be taken for the old one's: their ids are the same
        return Conflict(f"flow {command.flow_id} has ended and is deleted: start this one under a new id", flow_id=command.flow_id)
    if flow is None:
        return None
    if command.owner_session_key != flow.owner_session_key:
        return Forbidden(f"flow {flow.id} belongs to another agent or session", flow_id=flow.id)
    if (command.controller_id, command.goal) != (flow.controller_id, flow.goal):
        return Conflict(f"flow {flow.id} was started before with another controller_id or goal", flow_id=flow.id)
    return Decision(outcome="applied", flow=flow)


def _pass_deadline(passed: DeadlinePassed, view: View, now: Micros) -> Decision | FlowError:
    """Let time act on a flow, if its wait is still of the due generation (R8)."""
    flow = view.flow(passed.flow_id)
    if flow is None or flow.wait_id != passed.wait_id:
        return Decision(outcome="unmatched", flow=flow)
    draft = Draft(flow, WORKER, now)
    if flow.cancel_requested:
        cancel(draft, view.cancel_reason(flow.id))
        return Decision(outcome="applied", flow=draft.flow, changes=(draft.change(),))
    outcome = pass_time(draft, passed.at_us)
    # Where nothing was due, too: the row is written again with its next due time, or it would be due for ever.
    return Decision(outcome=outcome, flow=draft.flow, changes=(draft.change(),))
