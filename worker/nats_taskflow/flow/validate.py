"""Check a settled wait condition before its flow is parked (SEMANTICS 3, last paragraph): what can never happen is refused at once."""

from __future__ import annotations

from typing import Any

from nats_taskflow.errors import FlowError, Forbidden, HorizonExceeded, InvalidRequest, NotFound, TimerInPast
from nats_taskflow.flow.conditions import MAX_DEPTH, MAX_LEAVES, AtLeast, ExternalEvent, FlowEnds, Manual, Node, Timer, WaitCondition, nodes
from nats_taskflow.flow.decision import View
from nats_taskflow.flow.error_paths import relocate, trail
from nats_taskflow.flow.ids import agent_of, bad_id
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.stimuli import Policy
from nats_taskflow.text import counted
from nats_taskflow.units import Micros, to_micros, to_the_second


def check(condition: WaitCondition, flow: Flow, view: View, now: Micros, policy: Policy) -> FlowError | None:
    """Return why the settled condition cannot be waited for, or None (SEMANTICS 3, last paragraph)."""
    walked = list(nodes(condition))
    if max(node.depth for node in walked) > MAX_DEPTH:
        return InvalidRequest(f"a wait condition nests at most {MAX_DEPTH} deep", path="/wait_condition")
    if sum(node.leaf is not None for node in walked) > MAX_LEAVES:
        return InvalidRequest(f"a wait condition has at most {MAX_LEAVES} leaves", path="/wait_condition")
    for node in walked:
        refusal = _check_node(node, flow, view, now, policy)
        if refusal is not None:
            return relocate(refusal, trail(condition, node.number))
    names = [node.condition.name for node in walked if isinstance(node.condition, Manual) and node.condition.name is not None]
    if len(set(names)) < len(names):
        return InvalidRequest("two manual leaves of one wait have the same name", path="/wait_condition/conditions")
    return None


def _check_node(node: Node, flow: Flow, view: View, now: Micros, policy: Policy) -> FlowError | None:
    """Check one part of the condition."""
    match node.condition:
        case Timer(at=at):
            neither = InvalidRequest("a timer takes `at`, a time, or `after`, a duration", path="/wait_condition/at")
            return neither if at is None else _check_time(to_micros(at), "at", now, policy)
        case ExternalEvent() as wait:
            bad = _check_id(wait.topic, "topic") or _check_id(wait.correlation_id or "", "correlation_id")
            bad = bad or _check_topic(wait.topic, flow, policy) or _check_schema(wait.accept, policy)
        case FlowEnds(flow_id=awaited):
            bad = _check_awaited(awaited, flow, view)
        case Manual(name=name):
            bad = _check_id(name, "name") if name is not None else None
        case AtLeast(count=count, conditions=conditions) if not 1 <= count <= len(conditions):
            bad = InvalidRequest(f"count is {count}, but there are {counted(len(conditions), 'condition')}", path="/wait_condition/count")
        case composite:
            none = not composite.conditions
            bad = InvalidRequest("a composite wait needs at least one condition", path="/wait_condition/conditions") if none else None
    deadline = node.condition.deadline
    return bad or (_check_time(to_micros(deadline), "deadline", now, policy) if deadline is not None else None)


def _check_time(at: Micros, name: str, now: Micros, policy: Policy) -> FlowError | None:
    """Refuse a time that has passed or lies beyond the horizon."""
    shown = to_the_second(at)
    if at < now:
        return TimerInPast(f"{name} {shown} has passed already", path=f"/wait_condition/{name}")
    if at > now + policy.timer_horizon_us:
        days = policy.timer_horizon_us / 86_400_000_000
        return HorizonExceeded(f"{name} {shown} is more than {days:g} days ahead", path=f"/wait_condition/{name}")
    return None


def _check_id(text: str, name: str) -> FlowError | None:
    """Refuse an id that could not be matched byte for byte."""
    why = bad_id(text)
    return InvalidRequest(f"{name} {why}", path=f"/wait_condition/{name}") if why else None


def _check_topic(topic: str, flow: Flow, policy: Policy) -> FlowError | None:
    """Refuse a topic that no binding covers, or that this owner may not use (SEMANTICS R3)."""
    return policy.topics(topic, agent_of(flow.owner_session_key)) if policy.topics is not None else None


def _check_schema(schema: dict[str, Any] | None, policy: Policy) -> FlowError | None:
    """Refuse an `accept` that cannot be used."""
    if schema is None:
        return None
    if policy.schema_flaw is None:
        return InvalidRequest("this worker checks no payloads: leave `accept` out", path="/wait_condition/accept")
    flaw = policy.schema_flaw(schema)
    return InvalidRequest(f"accept: {flaw}", path="/wait_condition/accept") if flaw else None


def _check_awaited(awaited: str, flow: Flow, view: View) -> FlowError | None:
    """Refuse to wait for a flow that is not there, is somebody else's, or is the waiting one itself."""
    if awaited == flow.id:
        return InvalidRequest("a flow cannot wait for its own end", path="/wait_condition/flow_id")
    other = view.flow(awaited)
    if other is None:
        return NotFound(f"there is no flow {awaited} to wait for", flow_id=awaited, path="/wait_condition/flow_id")
    if other.owner_session_key != flow.owner_session_key:
        return Forbidden(f"flow {awaited} belongs to another agent or session", flow_id=awaited, path="/wait_condition/flow_id")
    return None
