"""Park a flow: make its wait condition absolute, check it, and open its waits.

What is there already meets them at once: flows that have ended, and replies that came early (SEMANTICS 3, R3, R4, R6).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from uuid import UUID

import msgspec
from msgspec.structs import replace

from nats_taskflow.errors import FlowError, Internal, InvalidRequest, WaitConflict
from nats_taskflow.flow.cascade import describe_end
from nats_taskflow.flow.conditions import (
    FLOW_ENDS,
    Composite,
    ExternalEvent,
    FlowEnds,
    Timer,
    WaitCondition,
    deadline_of,
    nodes,
    parse,
    to_value,
)
from nats_taskflow.flow.decision import Decision, Draft, MatchedHeld, RejectedHeld, View
from nats_taskflow.flow.end import EndedBy, satisfy
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import DelegateMessage, Flow, HeldReply, Waiter
from nats_taskflow.flow.payload_check import payload_refusal
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Caller, Command, ParkFlow
from nats_taskflow.flow.validate import check, relocate, spelling_refusal
from nats_taskflow.units import Micros, parse_duration, to_datetime

MAX_WAITERS = 500
"""How many flows may wait for one pair, all of which one reply resumes."""
_DIGITS = 32
"""Hexadecimal digits of a minted id: 128 bits, written as a UUID, because some agents parse it as one and write it back (R3)."""


def park(command: ParkFlow, flow: Flow, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Decide `set_waiting` for a running flow."""
    try:
        condition = normalize(parse(command.condition), now, policy, command.nonce)
    except msgspec.ValidationError as bad:
        return spelling_refusal(bad, command.condition)
    except FlowError as refused:
        return refused
    for node in nodes(condition):
        if isinstance(node.condition, ExternalEvent) and (node.condition.to or node.condition.cancel_to):
            return InvalidRequest("`to` and `cancel_to` belong to `delegate`, which sends the request too", path="/wait_condition")
    return park_on(condition, command, flow, view, now, policy)


def park_on(condition: WaitCondition, command: Command, flow: Flow, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Park a running flow on a normalized condition, unless that is refused.

    What is there already may satisfy the condition at once.
    """
    refusal = check(condition, flow, view, now, policy) or _conflict(condition, flow, view)
    if refusal is not None:
        return refusal
    draft = Draft(flow, command.caller, now)
    first = next((n.condition for n in nodes(condition) if isinstance(n.condition, ExternalEvent)), None)
    pair = (first.topic, first.correlation_id or "") if first is not None else None
    draft.add(EventKind.WAITING, {"wait": to_value(condition)}, pair=pair)
    draft.opened.extend(_waiters(condition, draft.flow))
    _meet_ended(draft, view, condition, policy)
    taken, spoiled = _take_held(draft, view, condition, now, policy)
    return Decision(outcome="applied", flow=draft.flow, changes=(draft.change(),), taken=taken, spoiled=spoiled)


def with_outgoing(decision: Decision, outgoing: DelegateMessage) -> Decision:
    """Add a message to a delegate to the one change of a decision."""
    change = replace(decision.changes[0], outgoing=(*decision.changes[0].outgoing, outgoing))
    return replace(decision, changes=(change,))


def normalize(condition: WaitCondition, now: Micros, policy: Policy, nonce: str) -> WaitCondition:
    """Make a condition absolute.

    Durations become times, times are UTC, and missing correlation ids are minted. Raises `InvalidRequest` for a text that is no duration,
    and where both a time and a duration are given.
    """
    normalized = _normalize_part(condition, now, _correlation_ids(nonce))
    if isinstance(normalized, Timer) or normalized.deadline is not None or policy.default_timeout_us is None:
        return normalized
    return replace(normalized, deadline=to_datetime(now + policy.default_timeout_us))


def _normalize_part(part: WaitCondition, now: Micros, ids: Iterator[str]) -> WaitCondition:
    """Make one part absolute, and what is below it."""
    if isinstance(part, Timer):
        return replace(part, at=_instant(part, "at", "after", now), after=None)
    end = _instant(part, "deadline", "timeout", now)
    if end is not None:
        part = replace(part, deadline=end, timeout=None)
    if isinstance(part, ExternalEvent) and part.correlation_id is None:
        return replace(part, correlation_id=next(ids))
    if isinstance(part, FlowEnds):
        return replace(part, flow_id=part.flow_id.lower())
    if isinstance(part, Composite):
        return replace(part, conditions=tuple(_normalize_below(part, index, now, ids) for index in range(len(part.conditions))))
    return part


def _normalize_below(part: Composite, index: int, now: Micros, ids: Iterator[str]) -> WaitCondition:
    """Make one condition of a composite absolute.

    Raises `InvalidRequest` with the path from the whole condition down.
    """
    try:
        return _normalize_part(part.conditions[index], now, ids)
    except InvalidRequest as refused:
        relocate(refused, f"/conditions/{index}")
        raise


def _correlation_ids(nonce: str) -> Iterator[str]:
    # Whoever knows one of the ids can compute neither the nonce nor the others.
    for number in count(1):
        yield str(UUID(hex=sha256(f"{nonce}:{number}".encode()).hexdigest()[:_DIGITS]))


def _instant(part: WaitCondition, instant: str, length: str, now: Micros) -> datetime | None:
    """Return a part's time in UTC, or None where it has none.

    It is its `instant`, or its `length` from now on. Raises `InvalidRequest`.
    """
    at, span = getattr(part, instant), getattr(part, length)
    if span is None:
        return None if at is None else _utc(at, instant)
    if at is not None:
        raise InvalidRequest(f"`{instant}` and `{length}` say the same: leave one out", path=f"/wait_condition/{length}")
    return to_datetime(now + _duration(span, length))


def _utc(at: datetime, name: str) -> datetime:
    """Return a time in UTC.

    Raises `InvalidRequest` where UTC has no such year (9999-12-31 west of Greenwich).
    """
    try:
        return at.astimezone(UTC)
    except OverflowError as bad:
        message = f"{name} is no time between the years 1 and 9999 in UTC"
        raise InvalidRequest(message, path=f"/wait_condition/{name}") from bad


def _duration(text: str, name: str) -> Micros:
    """Read a duration. Raises `InvalidRequest` naming the field."""
    try:
        return parse_duration(text)
    except ValueError as bad:
        raise InvalidRequest(str(bad), path=f"/wait_condition/{name}") from bad


def _waiters(condition: WaitCondition, flow: Flow) -> list[Waiter]:
    """List the waits that the condition opens, for replies and for the ends of flows."""
    replies = [
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
    ends = [
        Waiter(
            flow_id=flow.id, wait_id=flow.wait_id or 0, leaf=n.leaf or 0, topic=FLOW_ENDS, correlation_id=n.condition.flow_id, mode="all"
        )
        for n in nodes(condition)
        if isinstance(n.condition, FlowEnds)
    ]
    return replies + ends


def _conflict(condition: WaitCondition, flow: Flow, view: View) -> FlowError | None:
    """Refuse a pair that another flow waits for, unless both waits are `all`.

    See SEMANTICS R6. Only that flow's owner learns which flow it is.
    """
    seen: set[tuple[str, str]] = set()
    for waiter in _waiters(condition, flow):
        if waiter.pair in seen:
            return InvalidRequest("two leaves of one wait name the same topic and correlation_id", path="/wait_condition/conditions")
        seen.add(waiter.pair)
        others = view.waiters(waiter.pair)
        if len(others) >= MAX_WAITERS:
            message = f"{len(others)} flows wait for this topic and correlation_id already, and no more may: use several correlation ids"
            return WaitConflict(message, topic=waiter.topic, correlation_id=waiter.correlation_id, limit=MAX_WAITERS)
        for other in others:
            if waiter.mode == "all" and other.mode == "all":
                continue
            holder = {"flow_id": other.flow_id} if _owner(view, other.flow_id) == flow.owner_session_key else {}
            details = {"topic": waiter.topic, "correlation_id": waiter.correlation_id, **holder}
            return WaitConflict("another flow waits for this topic and correlation_id already", **details)
    return None


def _owner(view: View, flow_id: str) -> str | None:
    """Return the owner of a flow, or None where its row cannot be read.

    The waits of such a flow count all the same (SEMANTICS R13).
    """
    try:
        flow = view.flow(flow_id)
    except Internal:
        return None
    return flow.owner_session_key if flow is not None else None


def _meet_ended(draft: Draft, view: View, condition: WaitCondition, policy: Policy) -> None:
    """Satisfy the leaves that wait for the end of a flow that has ended already."""
    generation = draft.flow.wait_id
    for node in nodes(condition):
        if not isinstance(node.condition, FlowEnds) or draft.flow.wait_id != generation or node.leaf in draft.satisfied:
            continue
        ended = view.flow(node.condition.flow_id)
        if ended is not None and ended.terminal:
            satisfy(draft, node.leaf or 0, describe_end(ended, draft.flow, policy), _end_source(ended))


def _end_source(ended: Flow) -> EndedBy:
    # What satisfied the leaf is the flow's end, and the event is its last journal entry.
    by = Caller(actor="worker", cause=f"{ended.id}:{ended.seq}")
    return EndedBy(cause="event", pair=("flow", ended.id), event_id=by.cause, caller=by)


def _take_held(
    draft: Draft, view: View, condition: WaitCondition, now: Micros, policy: Policy
) -> tuple[tuple[MatchedHeld, ...], tuple[RejectedHeld, ...]]:
    """Satisfy the opened waits with held replies, oldest arrival first.

    See SEMANTICS R4. An expired reply that is still stored counts as gone.
    """
    generation = draft.flow.wait_id
    if generation is None:
        return (), ()  # the end of another flow has ended this wait already: it uses no reply up (R10)
    candidates = [
        (held.arrived_us, waiter.leaf, waiter, held)
        for waiter in tuple(draft.opened)
        for held in view.held(waiter.pair)
        if held.expires_us > now and held.flow_id in (None, draft.flow.id) and _in_time(held, condition, waiter.leaf)
    ]
    taken: list[MatchedHeld] = []
    spoiled: list[RejectedHeld] = []
    for _, leaf, waiter, held in sorted(candidates, key=lambda c: c[:2]):
        if draft.flow.wait_id != generation or leaf in draft.satisfied:
            continue
        refusal = payload_refusal(condition, draft.flow, leaf, held.payload, policy)
        if refusal is not None:
            spoiled.append(RejectedHeld(held, *refusal))
            continue
        by = Caller(actor=f"topic:{held.topic}", cause=held.event_id, trace=held.trace)
        source = EndedBy(cause="event", pair=waiter.pair, event_id=held.event_id, caller=by)
        taken.append(MatchedHeld(held, satisfy(draft, leaf, held.payload, source)))
    return tuple(taken), tuple(spoiled)


def _in_time(held: HeldReply, condition: WaitCondition, leaf: int) -> bool:
    deadline = deadline_of(condition, leaf)
    return deadline is None or held.arrived_us < deadline
