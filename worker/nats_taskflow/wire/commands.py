"""Turn a typed request into what happens to a flow: a table from request types to flow commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow import stimuli as flow
from nats_taskflow.wire import requests as wire
from nats_taskflow.wire.delegations import delegation
from nats_taskflow.wire.origin import Origin


def owner_of(agent: str, session_id: str) -> str:
    """Return the owner session key (SEMANTICS 1)."""
    return f"agent:{agent}:session:{session_id}"


def build(request: wire.Request, origin: Origin) -> flow.Stimulus:
    """Return the command that the request asks for. Raises `InvalidRequest` for fields that exclude each other."""
    agent = origin.agent
    caller = flow.Caller(actor=f"agent:{agent}", owner=owner_of(agent, request.session_id), cause=origin.command_id, trace=origin.trace)
    command: flow.Stimulus = _BUILD[type(request)](request, caller, origin)
    return command


def _start(request: wire.Start, caller: flow.Caller, origin: Origin) -> flow.Stimulus:
    """Start a flow whose id is the client's, or a new one."""
    if request.mirrored and request.hold:
        raise InvalidRequest("a mirrored flow runs at once: leave out mirrored or hold", path="/hold")
    return flow.StartFlow(
        flow_id=origin.mint.flow_id() if request.flow_id is None else request.flow_id.lower(),
        minted=request.flow_id is None,
        caller=caller,
        expected_revision=request.expected_revision,
        controller_id=request.controller_id,
        goal=request.goal,
        owner_session_key=owner_of(origin.agent, request.session_id),
        requester_origin=request.requester_origin or caller.actor,
        current_step=request.current_step,
        state_json=request.state,
        idempotency_key=request.idempotency_key,
        mirrored=request.mirrored,
        hold=request.hold,
        parent_flow_id=request.parent_flow_id.lower() if request.parent_flow_id is not None else None,
        hops=origin.hops,
    )


def _run(request: wire.Run, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Move created → running."""
    return flow.RunFlow(flow_id=request.flow_id.lower(), caller=caller, expected_revision=request.expected_revision)


def _advance(request: wire.Advance, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Merge and name the step."""
    return flow.AdvanceFlow(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        patch=request.patch or {},
        next_step=request.current_step,
    )


def _wait(request: wire.Wait, caller: flow.Caller, origin: Origin) -> flow.Stimulus:
    """Park."""
    return flow.ParkFlow(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        condition=request.wait_condition,
        nonce=origin.mint.nonce(),
    )


def _resume(request: wire.Resume, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Move waiting → running, on request."""
    return flow.ResumeFlow(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        patch=request.patch,
        reason=request.reason,
        leaf=request.leaf,
    )


def _finish(request: wire.Finish, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Move running → finished."""
    return flow.FinishFlow(
        flow_id=request.flow_id.lower(), caller=caller, expected_revision=request.expected_revision, final_state=request.final_state
    )


def _fail(request: wire.Fail, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Move running or waiting → failed."""
    return flow.FailFlow(flow_id=request.flow_id.lower(), caller=caller, expected_revision=request.expected_revision, reason=request.reason)


def _cancel(request: wire.Cancel, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Cancel now, or ask for it."""
    flow_id, revision = request.flow_id.lower(), request.expected_revision
    if request.mode == "now":
        return flow.CancelFlow(flow_id=flow_id, caller=caller, expected_revision=revision, reason=request.reason, cascade=request.cascade)
    if not request.cascade:
        raise InvalidRequest("a cancellation that is only requested takes the children along: leave out cascade", path="/cascade")
    return flow.RequestCancel(flow_id=flow_id, caller=caller, expected_revision=revision, reason=request.reason)


def _observe(request: wire.Observe, caller: flow.Caller, origin: Origin) -> flow.Stimulus:
    """Record a run."""
    return flow.ObserveStep(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        step_id=origin.mint.flow_id(),
        run_id=request.run_id,
        task=request.task,
        status=request.status,
        child_session_key=request.child_session_key,
        result_json=request.result,
    )


_BUILD: dict[type[wire.Request], Callable[[Any, flow.Caller, Origin], flow.Stimulus]] = {
    wire.Start: _start,
    wire.Run: _run,
    wire.Advance: _advance,
    wire.Wait: _wait,
    wire.Delegate: delegation,
    wire.Resume: _resume,
    wire.Finish: _finish,
    wire.Fail: _fail,
    wire.Cancel: _cancel,
    wire.Observe: _observe,
}
