"""Delegate: open the wait and send the request in one change (SEMANTICS 5)."""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.errors import FlowError, Forbidden, InvalidRequest
from nats_taskflow.flow.conditions import ExternalEvent, parse
from nats_taskflow.flow.decision import Decision, View
from nats_taskflow.flow.end import cancel_notice
from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.model import DelegateMessage, Flow
from nats_taskflow.flow.park import normalize, park_on, with_outgoing
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.request_headers import DEADLINE, HOPS, REPLY_SUBJECT, asker
from nats_taskflow.flow.stimuli import DelegateFlow, RequestNotStored
from nats_taskflow.units import Micros, rfc3339, to_micros


def delegate(command: DelegateFlow, flow: Flow, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Decide a delegation by a running flow."""
    forbidden = _forbidden(command, flow, policy)
    if forbidden is not None:
        return forbidden
    bounds = {"deadline": command.deadline, "timeout": command.timeout, "accept": command.accept, "cancel_to": command.cancel_to}
    wait: dict[str, Any] = {
        "kind": "external_event",
        "topic": command.reply_topic,
        "correlation_id": command.correlation_id,
        "to": command.to,
    }
    wait |= {"on_timeout": command.on_timeout} | {name: value for name, value in bounds.items() if value is not None}
    try:
        condition = normalize(parse(wait), now, policy, command.correlation_id)
    except msgspec.ValidationError as bad:
        return InvalidRequest(f"delegate: {bad}", path="/" + str(bad).rpartition("`$.")[2].rstrip("`"))
    except FlowError as refused:
        return _by_own_field(refused)
    assert isinstance(condition, ExternalEvent), "it was built as one above"
    reply = _reply_subject(command, policy)
    if isinstance(reply, FlowError):
        return reply
    request = _request(command, condition, flow, reply)
    refusal = _taken_for_reply(command, flow, request, policy)
    if refusal is not None:
        return refusal
    decision = park_on(condition, command, flow, view, now, policy)
    if isinstance(decision, FlowError):
        return _by_own_field(decision)
    if decision.changes[0].flow.wait_id is None:
        return decision  # a held reply has ended the wait already: a request would be useless now, and never be dropped
    return with_outgoing(decision, request)


def send_again(refused: RequestNotStored, view: View) -> Decision:
    """Decide to send a request again that the broker did not store.

    The broker said so on the request's reply subject (SEMANTICS R0).
    """
    waiters = view.waiters((refused.topic, refused.correlation_id))
    return Decision(outcome="unmatched", refused=tuple((waiter.flow_id, waiter.wait_id, refused.why) for waiter in waiters))


def _forbidden(command: DelegateFlow, flow: Flow, policy: Policy) -> FlowError | None:
    """Refuse a circle of delegations, and a delegate that the agent may not ask."""
    if flow.hops >= policy.max_hops:
        message = f"flow {flow.id} was reached by {flow.hops} delegations in a row: it may be delegating to itself through others"
        return Forbidden(message, hops=flow.hops, limit=policy.max_hops)
    for field, subject in (("to", command.to), ("cancel_to", command.cancel_to)):
        if subject is not None and policy.delegates is not None:
            refusal = policy.delegates(subject, agent_of(flow.owner_session_key))
            if refusal is not None:
                refusal.details["path"] = f"/{field}"
                return refusal
    return None


def _taken_for_reply(command: DelegateFlow, flow: Flow, request: DelegateMessage, policy: Policy) -> FlowError | None:
    """Refuse a request that the worker would take for a reply once it is published.

    It might resume somebody else's flow. Its callers may not be allowed to publish there, and it must not do it for them (confused deputy).
    """
    sent = [("to", request)]
    if command.cancel_to is not None:
        sent.append(("cancel_to", cancel_notice(flow, command.correlation_id, command.cancel_to, None)))
    for field, outgoing in sent:
        if policy.takes is not None and policy.takes(outgoing.subject, outgoing.headers, outgoing.body):
            message = f"{field}: {outgoing.subject} carries replies, and this would be taken for one; name the subject of a delegate"
            return InvalidRequest(message, path=f"/{field}")
    return None


def _by_own_field(refused: FlowError) -> FlowError:
    # `delegate` takes no `wait_condition`: the path is that of the field it has instead.
    if "path" in refused.details:
        refused.details["path"] = refused.details["path"].replace("/wait_condition/topic", "/reply_topic").replace("/wait_condition", "")
    return refused


def _reply_subject(command: DelegateFlow, policy: Policy) -> str | FlowError | None:
    # An answer on it reaches the topic that the flow waits on.
    if command.reply is None or policy.answers_on is None:
        return command.reply
    return policy.answers_on(command.reply_topic, command.correlation_id)


def _request(command: DelegateFlow, wait: ExternalEvent, flow: Flow, reply: str | None) -> DelegateMessage:
    """Build the request. The worker's own headers win over the caller's."""
    headers = {**asker(flow.owner_session_key, flow.id, command.correlation_id, command.caller.trace), HOPS: str(flow.hops + 1)}
    if wait.deadline is not None:
        headers[DEADLINE] = rfc3339(to_micros(wait.deadline))
    if reply is not None:
        headers[REPLY_SUBJECT] = reply
    return DelegateMessage(
        flow_id=flow.id,
        wait_id=flow.revision + 1,
        kind="request",
        subject=command.to,
        headers={**command.headers, **headers},
        body=msgspec.json.encode(command.payload),
        reply=reply,
    )
