"""What a flow can wait for, and when such a condition holds (SEMANTICS 3).

A condition is a tree. Its *leaves* (timer, external_event, flow, manual) are numbered depth-first from 0. Its *nodes* (every part, the
composites too) are numbered in the same walk, parents first. What has satisfied a wait so far is a mapping, `progress`: leaf index as text
→ payload, and `node:<n>` for a composite that timed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import count
from typing import Annotated, Any, Literal, get_args

import msgspec

from nats_taskflow.units import Micros, to_micros

OnTimeout = Literal["resume", "fail", "cancel"]
Mode = Literal["one", "all"]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]

MAX_DEPTH = 4
MAX_LEAVES = 64
MAX_ID_LENGTH = 256
FLOW_ENDS = "\x1fflow"
"""The topic of waits for the end of a flow. No reply can name it: ids with control characters are refused (R1)."""


class Timer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="timer", forbid_unknown_fields=True):
    """A wait for a time: resumes when now ≥ `at`.

    `after` is the time from the parking on ("15m"), and is stored as `at`. Exactly one of the two is given.
    """

    at: Instant | None = None
    after: str | None = None


class Bounded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What every wait but a timer may carry: its end, and what happens then.

    The end is a `deadline`, or a `timeout` from the parking on.
    """

    deadline: Instant | None = None
    timeout: str | None = None
    on_timeout: OnTimeout = "resume"


class FlowEnds(Bounded, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="flow", forbid_unknown_fields=True):
    """Resumes when another flow of the same owner has ended, with its final state."""

    flow_id: str


class ExternalEvent(
    Bounded, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="external_event", forbid_unknown_fields=True
):
    """A wait for a reply with exactly this topic and correlation id.

    Without a correlation id the worker mints one (R3). `accept` is a JSON Schema that the payload has to fit. `to` and `cancel_to` are set
    by `delegate`: who was asked, and who wants to hear of a cancellation.
    """

    topic: str
    correlation_id: str | None = None
    mode: Mode = "one"
    accept: dict[str, Any] | None = None
    to: str | None = None
    cancel_to: str | None = None


class Manual(Bounded, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="manual", forbid_unknown_fields=True):
    """A wait that only an explicit resume ends.

    `prompt` says what is asked of whom, `name` tells several of them apart.
    """

    prompt: str | None = None
    name: str | None = None


class AnyOf(Bounded, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="any_of", forbid_unknown_fields=True):
    """Holds when one of its conditions holds."""

    conditions: tuple[WaitCondition, ...]


class AllOf(Bounded, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="all_of", forbid_unknown_fields=True):
    """Holds when all of its conditions hold."""

    conditions: tuple[WaitCondition, ...]


class AtLeast(Bounded, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="at_least", forbid_unknown_fields=True):
    """Holds when `count` of its conditions hold."""

    count: int
    conditions: tuple[WaitCondition, ...]


WaitCondition = Timer | ExternalEvent | FlowEnds | Manual | AnyOf | AllOf | AtLeast
Composite = AnyOf | AllOf | AtLeast
KINDS: dict[str, type[msgspec.Struct]] = {str(kind.__struct_config__.tag): kind for kind in get_args(WaitCondition)}
COMPOSITES = (AnyOf, AllOf, AtLeast)
"""For `isinstance`, which takes four times as long with a union."""


class _Boxed(msgspec.Struct, frozen=True):
    """A condition in a struct, so that msgspec prepares its types only once.

    It prepares those of a bare union on every call (8 µs of 9).
    """

    condition: WaitCondition


# Have msgspec prepare the types now: of two threads that were the first at the same time, one would follow a null pointer (msgspec 0.22).
msgspec.json.Decoder(_Boxed)


class Node(msgspec.Struct, frozen=True):
    """One part of a condition with its numbers; `leaf` is None for a composite."""

    number: int
    leaf: int | None
    condition: WaitCondition
    depth: int


def from_value(value: object) -> WaitCondition | None:
    """Return the condition in a JSON value, or None where it is none."""
    try:
        return parse(value)
    except msgspec.ValidationError:
        return None


def parse(value: object) -> WaitCondition:
    """Return the condition in a JSON value.

    Raises `msgspec.ValidationError` naming the part that is wrong.
    """
    try:
        return msgspec.convert({"condition": value}, _Boxed).condition
    except msgspec.ValidationError as bad:
        raise msgspec.ValidationError(str(bad).replace("$.condition", "$", 1)) from None


def to_value(condition: WaitCondition) -> dict[str, Any]:
    """Return the JSON object that `parse` reads."""
    value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(condition))
    return value


def nodes(condition: WaitCondition) -> Iterator[Node]:
    """Walk a condition depth-first, parents before their parts.

    Nodes and leaves are numbered in this order.
    """
    pending = [(condition, 1)]
    number = leaf = 0
    while pending:
        part, depth = pending.pop()
        if isinstance(part, COMPOSITES):
            yield Node(number, None, part, depth)
            pending.extend((below, depth + 1) for below in reversed(part.conditions))
        else:
            yield Node(number, leaf, part, depth)
            leaf += 1
        number += 1


def holds(condition: WaitCondition, progress: Mapping[str, Any]) -> bool:
    """Return whether a condition is satisfied by what `progress` records."""
    return _judge(condition, progress, count(), [])


def open_nodes(condition: WaitCondition, progress: Mapping[str, Any]) -> Iterator[Node]:
    """Walk like `nodes`, but only through what is still open.

    A satisfied part is closed, and all below it (SEMANTICS R10).
    """
    verdicts: list[bool] = []
    _judge(condition, progress, count(), verdicts)
    above = 0
    for node in nodes(condition):
        if above and node.depth > above:
            continue
        above = node.depth if verdicts[node.number] else 0
        if not above:
            yield node


def _judge(part: WaitCondition, progress: Mapping[str, Any], leaves: Iterator[int], verdicts: list[bool]) -> bool:
    """Return whether one part is satisfied; append a verdict for each of its nodes.

    The verdicts are in the order of `nodes`.
    """
    number = len(verdicts)
    verdicts.append(False)
    if isinstance(part, COMPOSITES):
        held = sum([_judge(below, progress, leaves, verdicts) for below in part.conditions])
        verdicts[number] = f"node:{number}" in progress or held >= _needed(part)
    else:
        verdicts[number] = str(next(leaves)) in progress
    return verdicts[number]


def _needed(part: Composite) -> int:
    """Return how many conditions of a composite have to hold."""
    match part:
        case AnyOf():
            return 1
        case AllOf():
            return len(part.conditions)
        case AtLeast():
            return part.count


def leaf_at(condition: WaitCondition, leaf: int) -> WaitCondition | None:
    """Return the leaf with this number, or None."""
    if not isinstance(condition, COMPOSITES):
        return condition if leaf == 0 else None
    return next((node.condition for node in nodes(condition) if node.leaf == leaf), None)


def due_times(condition: WaitCondition, progress: Mapping[str, Any]) -> list[tuple[Micros, Node]]:
    """List what time alone will do to the open parts, earliest first.

    Timers fire, and deadlines pass.
    """
    if not isinstance(condition, COMPOSITES):
        at = ends_at(condition) if "0" not in progress else None
        return [] if at is None else [(to_micros(at), Node(0, 0, condition, 1))]
    due = []
    for node in open_nodes(condition, progress):
        at = ends_at(node.condition)
        if at is not None:
            due.append((to_micros(at), node))
    return sorted(due, key=lambda item: (item[0], item[1].number))


def ends_at(part: WaitCondition) -> datetime | None:
    """Return when time alone ends a normalized part: its timer or its deadline."""
    return part.at if isinstance(part, Timer) else part.deadline


def deadline_of(condition: WaitCondition, leaf: int) -> Micros | None:
    """Return the earliest deadline that bounds this leaf, or None.

    It is the leaf's own, or that of a composite above it.
    """
    if not isinstance(condition, COMPOSITES):
        own = None if isinstance(condition, Timer) or leaf else condition.deadline
        return None if own is None else to_micros(own)
    earliest: Micros | None = None
    chain: list[Node] = []
    for node in nodes(condition):
        while chain and chain[-1].depth >= node.depth:
            chain.pop()
        chain.append(node)
        if node.leaf == leaf:
            break
    for node in chain:
        deadline = None if isinstance(node.condition, Timer) else node.condition.deadline
        if deadline is not None and (earliest is None or to_micros(deadline) < earliest):
            earliest = to_micros(deadline)
    return earliest
