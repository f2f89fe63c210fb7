"""Turn a typed request into a stimulus of the flow.

Refuses `delegate` targets and headers that a caller may not choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nats_taskflow.errors import InvalidRequest, TooLarge
from nats_taskflow.flow import stimuli as flow
from nats_taskflow.wire import requests as wire
from nats_taskflow.wire.headers import CORRELATION_ID, TRACEPARENT, Headers, weight
from nats_taskflow.wire.inbound import Ignored, Origin
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import Subjects, covers, is_token

MAX_HEADERS = 32
MAX_HEADER_BYTES = 8 * 1024
_NAME = re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
_VALUE = re.compile(r"\A[^\x00-\x1f\x7f-\x9f]*\Z")
_GUARDED = ("$", "_INBOX", "_R_.", "_GR_.")  # the server's own, everybody's inboxes, answers between accounts and clusters
_OURS = ("nats-", "taskflow-", CORRELATION_ID.lower(), TRACEPARENT)
_SENDER = "from"  # a delegate that knows nothing of us may take it for the name of the caller


def build_delegation(request: wire.DelegateCommand, caller: flow.Caller, origin: Origin) -> flow.DelegateFlow:
    """Build the `delegate` command.

    Raises `InvalidRequest` for a target or header that the caller may not choose (confused deputy).
    """
    for name, subject in (("to", request.to), ("cancel_to", request.cancel_to)):
        if subject is not None:
            _check_target(name, subject, origin.subjects)
    _check_headers(request.headers)
    built_in = origin.subjects.reply_topic(origin.agent)
    topic = request.reply_topic or built_in
    correlation_id = request.correlation_id or origin.mint.nonce()
    if topic == built_in and not is_token(correlation_id):
        message = "correlation_id becomes part of the reply's subject: 1 to 63 characters A-Z a-z 0-9 _ -"
        raise InvalidRequest(message, path="/correlation_id")
    return flow.DelegateFlow(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        to=request.to,
        payload=request.payload,
        headers=request.headers,
        reply_topic=topic,
        correlation_id=correlation_id,
        reply=f"{topic}.{correlation_id}" if topic == built_in else topic,
        deadline=request.deadline,
        timeout=request.timeout,
        on_timeout=request.on_timeout,
        accept=request.accept,
        cancel_to=request.cancel_to,
    )


def is_taken_for_reply(bindings: ReplyBindings, subject: str, headers: Headers, body: bytes) -> bool:
    """Return whether the worker would take its own message there for a reply.

    A message that a binding's `where` leaves out is none.
    """
    if not any(covers(binding.subject, subject) for binding in bindings.configured):
        return False
    return not isinstance(bindings.read(subject, headers, body, stream="", seq=0, arrived_us=0), Ignored)


def _check_target(name: str, subject: str, subjects: Subjects) -> None:
    # To these subjects the worker may publish and its callers may not: it must not do it for them.
    if subject.startswith((*_GUARDED, f"{subjects.prefix}.")) or subject == subjects.prefix:
        raise InvalidRequest(f"{name}: {subject} is reserved; name the subject of a delegate", path=f"/{name}")


def _check_headers(headers: dict[str, str]) -> None:
    """Refuse headers that are malformed, the worker's own, or too large."""
    for name, value in headers.items():
        if not _NAME.match(name) or not _VALUE.match(value):
            raise InvalidRequest(f"headers: {name!r} is no header: names are tokens, values have no control characters", path="/headers")
        if name.lower().startswith(_OURS) or name.lower() == _SENDER:
            message = f"headers: {name} says who asks and for what, which only the worker and NATS may: choose another name"
            raise InvalidRequest(message, path="/headers")
    if len(headers) > MAX_HEADERS or weight(headers) > MAX_HEADER_BYTES:
        raise TooLarge(f"headers: at most {MAX_HEADERS}, with {MAX_HEADER_BYTES} bytes together", path="/headers")


def owner_of(agent: str, session_id: str) -> str:
    """Return the owner session key (SEMANTICS 1)."""
    return f"agent:{agent}:session:{session_id}"


def build(request: wire.Request, origin: Origin) -> flow.Stimulus:
    """Return the stimulus that a request asks for.

    Raises `InvalidRequest` for fields that exclude each other.
    """
    agent = origin.agent
    caller = flow.Caller(actor=f"agent:{agent}", owner=owner_of(agent, request.session_id), cause=origin.command_id, trace=origin.trace)
    command: flow.Stimulus = _BUILD[type(request)](request, caller, origin)
    return command


def _start(request: wire.Start, caller: flow.Caller, origin: Origin) -> flow.Stimulus:
    """Start a flow, under the client's id or a new one."""
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
    return flow.RunFlow(flow_id=request.flow_id.lower(), caller=caller, expected_revision=request.expected_revision)


def _advance(request: wire.Advance, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
    """Merge a patch, and name the step."""
    return flow.AdvanceFlow(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        patch=request.patch or {},
        next_step=request.current_step,
    )


def _wait(request: wire.Wait, caller: flow.Caller, origin: Origin) -> flow.Stimulus:
    """Park the flow on a wait condition."""
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
    return flow.FinishFlow(
        flow_id=request.flow_id.lower(), caller=caller, expected_revision=request.expected_revision, final_state=request.final_state
    )


def _fail(request: wire.Fail, caller: flow.Caller, _origin: Origin) -> flow.Stimulus:
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
    """Record what is known of one run."""
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
    wire.DelegateCommand: build_delegation,
    wire.Resume: _resume,
    wire.Finish: _finish,
    wire.Fail: _fail,
    wire.Cancel: _cancel,
    wire.Observe: _observe,
}
