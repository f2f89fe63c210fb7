"""Refuse a wait condition that can never hold.

The refusal has a JSON pointer to the field (SEMANTICS 3, CONTRACT 3 `details.path`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, get_args

import msgspec

from nats_taskflow.errors import FlowError, Forbidden, HorizonExceeded, InvalidRequest, NotFound, TimerInPast
from nats_taskflow.flow.conditions import (
    COMPOSITES,
    KINDS,
    MAX_DEPTH,
    MAX_LEAVES,
    AtLeast,
    ExternalEvent,
    FlowEnds,
    Manual,
    Mode,
    Node,
    OnTimeout,
    Timer,
    WaitCondition,
    nodes,
)
from nats_taskflow.flow.decision import View
from nats_taskflow.flow.ids import agent_of, bad_id
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.policy import Policy
from nats_taskflow.text import TYPES, counted, meant, shown
from nats_taskflow.units import Micros, to_micros, to_the_second


def check(condition: WaitCondition, flow: Flow, view: View, now: Micros, policy: Policy) -> FlowError | None:
    """Return the refusal of a normalized condition, or None where it can hold.

    See SEMANTICS 3, last paragraph.
    """
    walked = list(nodes(condition))
    if max(node.depth for node in walked) > MAX_DEPTH:
        return InvalidRequest(f"a wait condition nests at most {MAX_DEPTH} deep", path="/wait_condition")
    if sum(node.leaf is not None for node in walked) > MAX_LEAVES:
        return InvalidRequest(f"a wait condition has at most {MAX_LEAVES} leaves", path="/wait_condition")
    for node in walked:
        refusal = _check_node(node, flow, view, now, policy)
        if refusal is not None:
            return relocate(refusal, pointer_to(condition, node.number))
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
    time = to_the_second(at)
    if at < now:
        return TimerInPast(f"{name} {time} has passed already", path=f"/wait_condition/{name}")
    if at > now + policy.timer_horizon_us:
        days = policy.timer_horizon_us / 86_400_000_000
        return HorizonExceeded(f"{name} {time} is more than {days:g} days ahead", path=f"/wait_condition/{name}")
    return None


def _check_id(text: str, name: str) -> FlowError | None:
    why = bad_id(text)
    return InvalidRequest(f"{name} {why}", path=f"/wait_condition/{name}") if why else None


def _check_topic(topic: str, flow: Flow, policy: Policy) -> FlowError | None:
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
    """Refuse to wait for a flow that cannot be waited for.

    It is not there, is somebody else's, or is the waiting one itself.
    """
    if awaited == flow.id:
        return InvalidRequest("a flow cannot wait for its own end", path="/wait_condition/flow_id")
    other = view.flow(awaited)
    if other is None:
        return NotFound(f"there is no flow {awaited} to wait for", flow_id=awaited, path="/wait_condition/flow_id")
    if other.owner_session_key != flow.owner_session_key:
        return Forbidden(f"flow {awaited} belongs to another agent or session", flow_id=awaited, path="/wait_condition/flow_id")
    return None


_WHOLE = "/wait_condition"
_FIELD = re.compile(r"\AObject (contains unknown|missing required) field `(.*)`\Z", re.DOTALL)
_TYPE = re.compile(r"\AExpected `(\w+)")
_TIME = "a time with its zone, like 2027-01-31T09:00:00Z"
_TAKES = {
    "kind": f"one of {', '.join(KINDS)}",
    "at": _TIME,
    "deadline": _TIME,
    "mode": f"one of {', '.join(get_args(Mode))}",
    "on_timeout": f"one of {', '.join(get_args(OnTimeout))}",
}
"""What a field takes, for those whose type does not say it all."""


def spelling_refusal(bad: msgspec.ValidationError, value: Any) -> InvalidRequest:
    """Return the refusal of a value that is no condition.

    It has the place that msgspec names (`… - at `$.conditions[0].at``).
    """
    text, _, place = str(bad).rpartition(" - at `$")
    tokens = [token for token in place.removesuffix("`").replace("[", ".").replace("]", "").split(".") if token]
    wrong_field = _FIELD.match(text)
    path, actual = "/".join([_WHOLE, *tokens]), _at(value, tokens)
    if wrong_field is not None:
        below = f"{path}/{wrong_field[2].replace('~', '~0').replace('/', '~1')}"  # what a caller calls a field may be any text
        misnamed = _unknown(wrong_field[2], actual["kind"]) if wrong_field[1] == "contains unknown" else _missing(wrong_field[2])
        return InvalidRequest(f"{path[1:]} {misnamed}", path=below)
    field = (tokens or [""])[-1]
    typed = _TYPE.match(text)
    takes = _TAKES.get(field) or (TYPES.get(typed[1]) if typed is not None else None) or text
    got = shown(actual) if isinstance(actual, str) else TYPES.get(_json_type(actual), "null")
    hint = meant(actual, KINDS) if field == "kind" and isinstance(actual, str) else ""
    return InvalidRequest(f"{path[1:]} must be {takes}, not {got}{hint}", path=path)


def _missing(name: str) -> str:
    return f"needs the field {name}" + (f": {_TAKES[name]}" if name in _TAKES else "")


def _unknown(name: str, kind: str) -> str:
    known = [field for field in KINDS[kind].__struct_fields__ if field not in ("to", "cancel_to")]  # these are set by `delegate`
    return f"({kind}) has no field {shown(name)}" + (meant(name, known) or f"; it takes {', '.join(known)}")


def _at(value: Any, tokens: list[str]) -> Any:
    for token in tokens:
        value = value[int(token)] if isinstance(value, list) else value[token]
    return value


def _json_type(value: Any) -> str:
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else type(value).__name__


def relocate(refused: FlowError, below: str) -> FlowError:
    """Put the place of a part before the path in its refusal.

    The part was checked as if it were the whole condition.
    """
    path = refused.details.get("path")
    if isinstance(path, str) and path.startswith(_WHOLE):
        refused.details["path"] = f"{_WHOLE}{below}{path.removeprefix(_WHOLE)}"
    return refused


def pointer_to(condition: WaitCondition, number: int) -> str:
    """Return the pointer to the node of this number: `/conditions/1/conditions/0`."""
    return next(islice(_pointers(condition, ""), number, None))


def _pointers(part: WaitCondition, at: str) -> Iterator[str]:
    """Yield the pointer to each part, in the order in which `nodes` numbers them."""
    yield at
    if isinstance(part, COMPOSITES):
        for index, below in enumerate(part.conditions):
            yield from _pointers(below, f"{at}/conditions/{index}")
