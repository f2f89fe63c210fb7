"""Park a flow: check and settle its wait condition, open the waits, and take the oldest held match (SEMANTICS 3, R3, R4, R6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

import msgspec
from msgspec.structs import replace

from worker.durations import parse_duration
from worker.errors import FlowError, HorizonExceeded, Internal, InvalidRequest, TimerInPast, WaitConflict
from worker.flow.commands import Caller, ParkFlow, Policy
from worker.flow.decision import Decision, Draft, Taken, View
from worker.flow.ending import Source, satisfy
from worker.flow.lifecycle import EventKind
from worker.flow.model import Flow, HeldReply, Waiter
from worker.flow.waits import (
    MAX_DEPTH,
    MAX_ID_LENGTH,
    MAX_LEAVES,
    AtLeast,
    Composite,
    ExternalEvent,
    Manual,
    Node,
    Timer,
    WaitCondition,
    deadline_of,
    nodes,
    parse,
    to_value,
)
from worker.times import Micros, to_datetime, to_micros

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def park(command: ParkFlow, flow: Flow, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Decide `set_waiting` for a running flow."""
    try:
        condition = settle(parse(command.condition), now, policy, command.nonce)
    except msgspec.ValidationError as bad:
        return InvalidRequest(f"wait_condition: {bad}", path=_pointer(str(bad)))
    except FlowError as refused:
        return refused
    refusal = check(condition, flow, now, policy) or _conflict(condition, flow, view)
    if refusal is not None:
        return refusal
    draft = Draft(flow, command.caller, now)
    first = next((n.condition for n in nodes(condition) if isinstance(n.condition, ExternalEvent)), None)
    pair = (first.topic, first.correlation_id or "") if first is not None else None
    parked = draft.add(EventKind.WAITING, {"wait": to_value(condition)}, pair=pair)
    draft.opened.extend(_waiters(condition, parked))
    taken = _take_held(draft, view, condition, now)
    return Decision(outcome="applied", flow=draft.flow, changes=(draft.change(),), taken=taken)


def settle(condition: WaitCondition, now: Micros, policy: Policy, nonce: str) -> WaitCondition:
    """Make a condition absolute: timeouts become deadlines, missing correlation ids are minted, times are UTC.

    Raises `InvalidRequest` for a timeout that is no duration.
    """
    settled = _settle(condition, now, nonce, count(1))
    wants_default = policy.default_timeout_us is not None and not isinstance(settled, Timer) and settled.deadline is None
    if wants_default and not isinstance(settled, Timer):
        settled = replace(settled, deadline=to_datetime(now + (policy.default_timeout_us or 0)))
    return settled


def _settle(part: WaitCondition, now: Micros, nonce: str, minted: Iterator[int]) -> WaitCondition:
    """Settle one part and what is below it."""
    if isinstance(part, Timer):
        return replace(part, at=_utc(part.at, "at"))
    if part.timeout is not None:
        if part.deadline is not None:
            message = "a wait takes a deadline or a timeout, not both: leave one out"
            raise InvalidRequest(message, path="/wait_condition/timeout")
        part = replace(part, deadline=to_datetime(now + _duration(part.timeout)), timeout=None)
    elif part.deadline is not None:
        part = replace(part, deadline=_utc(part.deadline, "deadline"))
    if isinstance(part, ExternalEvent) and part.correlation_id is None:
        number = next(minted)
        return replace(part, correlation_id=nonce if number == 1 else f"{nonce}-{number}")
    if isinstance(part, Composite):
        return replace(part, conditions=tuple(_settle(below, now, nonce, minted) for below in part.conditions))
    return part


def _utc(at: datetime, name: str) -> datetime:
    """Return the time in UTC. Raises `InvalidRequest` where UTC has no such year (9999-12-31 west of Greenwich)."""
    try:
        return at.astimezone(UTC)
    except OverflowError as bad:
        message = f"{name} is no time between the years 1 and 9999 in UTC"
        raise InvalidRequest(message, path=f"/wait_condition/{name}") from bad


def _duration(text: str) -> Micros:
    """Read a timeout. Raises `InvalidRequest` naming the field."""
    try:
        return parse_duration(text)
    except ValueError as bad:
        raise InvalidRequest(str(bad), path="/wait_condition/timeout") from bad


def check(condition: WaitCondition, flow: Flow, now: Micros, policy: Policy) -> FlowError | None:
    """Return why the settled condition cannot be waited for, or None (SEMANTICS 3, last paragraph)."""
    walked = list(nodes(condition))
    if max(node.depth for node in walked) > MAX_DEPTH:
        return InvalidRequest(f"a wait condition nests at most {MAX_DEPTH} deep", path="/wait_condition")
    if sum(node.leaf is not None for node in walked) > MAX_LEAVES:
        return InvalidRequest(f"a wait condition has at most {MAX_LEAVES} leaves", path="/wait_condition")
    for node in walked:
        refusal = _check_node(node, flow, now, policy)
        if refusal is not None:
            return refusal
    return None


def _check_node(node: Node, flow: Flow, now: Micros, policy: Policy) -> FlowError | None:
    """Check one part of the condition."""
    match node.condition:
        case Timer(at=at):
            return _check_time(to_micros(at), "at", now, policy)
        case ExternalEvent() as wait:
            bad = _check_id(wait.topic, "topic") or _check_id(wait.correlation_id or "", "correlation_id")
            bad = bad or _check_topic(wait.topic, flow, policy)
        case Manual():
            bad = None
        case AtLeast(count=needed, conditions=conditions) if not 1 <= needed <= len(conditions):
            bad = InvalidRequest(f"count is {needed}, but there are {len(conditions)} conditions", path="/wait_condition/count")
        case composite:
            none = not composite.conditions
            bad = InvalidRequest("a composite wait needs at least one condition", path="/wait_condition/conditions") if none else None
    deadline = node.condition.deadline
    return bad or (_check_time(to_micros(deadline), "deadline", now, policy) if deadline is not None else None)


def _check_time(at: Micros, name: str, now: Micros, policy: Policy) -> FlowError | None:
    """Refuse a time that has passed or lies beyond the horizon."""
    shown = to_datetime(at).isoformat()
    if at < now:
        return TimerInPast(f"{name} {shown} has passed already", path=f"/wait_condition/{name}")
    if at > now + policy.timer_horizon_us:
        days = policy.timer_horizon_us / 86_400_000_000
        return HorizonExceeded(f"{name} {shown} is more than {days:g} days ahead", path=f"/wait_condition/{name}")
    return None


def bad_id(text: str) -> str | None:
    """Say what is wrong with a topic, correlation id or event id, or None: refused, never trimmed (SEMANTICS R1)."""
    if not text:
        return "is empty"
    if len(text) > MAX_ID_LENGTH:
        return f"is longer than {MAX_ID_LENGTH} characters"
    if _CONTROL.search(text):
        return "has control characters"
    return None


def _check_id(text: str, name: str) -> FlowError | None:
    """Refuse an id that could not be matched byte for byte."""
    why = bad_id(text)
    return InvalidRequest(f"{name} {why}", path=f"/wait_condition/{name}") if why else None


def agent_of(owner_session_key: str) -> str | None:
    """Return the agent of `agent:<agent>:session:<session>`, or None for an owner that is no agent."""
    match owner_session_key.split(":", 3):
        case ["agent", agent, "session", _]:
            return agent
        case _:
            return None


def _check_topic(topic: str, flow: Flow, policy: Policy) -> FlowError | None:
    """Refuse a topic that no binding covers, or that this owner may not use (SEMANTICS R3)."""
    return policy.topics(topic, agent_of(flow.owner_session_key)) if policy.topics is not None else None


def _waiters(condition: WaitCondition, flow: Flow) -> list[Waiter]:
    """List the waits that the condition opens for replies."""
    return [
        Waiter(
            flow_id=flow.id,
            wait_id=flow.wait_id or 0,
            leaf=node.leaf or 0,
            topic=node.condition.topic,
            correlation_id=node.condition.correlation_id or "",
            mode=node.condition.mode,
        )
        for node in nodes(condition)
        if isinstance(node.condition, ExternalEvent)
    ]


def _conflict(condition: WaitCondition, flow: Flow, view: View) -> FlowError | None:
    """Refuse a pair that another wait holds, unless both are `all` (SEMANTICS R6). The holder is named to its owner only."""
    seen: set[tuple[str, str]] = set()
    for waiter in _waiters(condition, flow):
        if waiter.pair in seen:
            return InvalidRequest("two leaves of one wait name the same topic and correlation_id", path="/wait_condition/conditions")
        seen.add(waiter.pair)
        for other in view.waiters(waiter.pair):
            if waiter.mode == "all" and other.mode == "all":
                continue
            named = {"flow_id": other.flow_id} if _owner(view, other.flow_id) == flow.owner_session_key else {}
            details = {"topic": waiter.topic, "correlation_id": waiter.correlation_id, **named}
            return WaitConflict("another flow waits for this topic and correlation_id already", **details)
    return None


def _owner(view: View, flow_id: str) -> str | None:
    """Return whose the flow is; None where its row cannot be read: it holds its waits all the same (SEMANTICS R13)."""
    try:
        flow = view.flow(flow_id)
    except Internal:
        return None
    return flow.owner_session_key if flow is not None else None


def _take_held(draft: Draft, view: View, condition: WaitCondition, now: Micros) -> tuple[Taken, ...]:
    """Satisfy the opened waits from the held replies, oldest arrival first (SEMANTICS R4). Expiry is decided here."""
    candidates = [
        (held.arrived_us, waiter.leaf, waiter, held)
        for waiter in tuple(draft.opened)
        for held in view.held(waiter.pair)
        if held.expires_us > now and held.flow_id in (None, draft.flow.id) and _in_time(held, condition, waiter.leaf)
    ]
    taken: list[Taken] = []
    generation = draft.flow.wait_id
    for _, leaf, waiter, held in sorted(candidates, key=lambda c: c[:2]):
        if draft.flow.wait_id != generation or leaf in draft.satisfied:
            continue
        by = Caller(actor=f"topic:{held.topic}", cause=held.event_id, trace=held.trace)
        source = Source(cause="event", pair=waiter.pair, event_id=held.event_id, caller=by)
        taken.append(Taken(held, satisfy(draft, leaf, held.payload, source)))
    return tuple(taken)


def _in_time(held: HeldReply, condition: WaitCondition, leaf: int) -> bool:
    """Tell whether the reply reached the broker before the leaf's deadline (SEMANTICS R9)."""
    deadline = deadline_of(condition, leaf)
    return deadline is None or held.arrived_us < deadline


def _pointer(message: str) -> str:
    """Turn the place in a msgspec message (`… - at `$.at``) into an RFC 6901 pointer below `wait_condition`."""
    place = message.rpartition("`$")[2].rstrip("`") if "`$" in message else ""
    missing = message.partition("required field `")[2].partition("`")[0] or message.partition("unknown field `")[2].partition("`")[0]
    tokens = [t for t in place.replace("[", ".").replace("]", "").split(".") if t] + ([missing] if missing else [])
    return "/".join(["/wait_condition", *tokens])
