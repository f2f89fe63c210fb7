"""What a wait condition is, what is refused before a flow is parked, and when a condition holds (SEMANTICS 3, R10, R11)."""

from __future__ import annotations

from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.flow.conditions import MAX_LEAVES, due_times, from_value, holds, nodes, open_nodes, parse, to_value
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import ParkFlow, StartFlow
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND, rfc3339

NOW = 1_800_000_000 * SECOND
OWNER = "agent:kate:session:main"
LAST = "9999-12-31T23:59:59-01:00"
"""A time that no year of UTC has."""


def at(seconds: float) -> str:
    return rfc3339(NOW + int(seconds * SECOND))


def external(correlation_id: str = "c", **more: Any) -> dict[str, Any]:
    return {"kind": "external_event", "topic": "t", "correlation_id": correlation_id, **more}


def manual(name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"kind": "manual", **({} if name is None else {"name": name}), **more}


def any_of(*conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "any_of", "conditions": list(conditions), **more}


def all_of(*conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "all_of", "conditions": list(conditions), **more}


def at_least(count: int, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "at_least", "count": count, "conditions": list(conditions)}


def parked(condition: Any, policy: Policy | None = None) -> Any:
    """Park a running flow; return the decision or the refusal."""
    world, policy = World(), policy or Policy()
    started = decide(StartFlow(flow_id="f", controller_id="k", goal="g", owner_session_key=OWNER), world, NOW, policy)
    assert isinstance(started, Decision)
    world.apply(started)
    return decide(ParkFlow(flow_id="f", condition=condition, nonce="nonce"), world, NOW, policy)


def waits(condition: Any, policy: Policy | None = None) -> Flow:
    decided = parked(condition, policy)
    assert isinstance(decided, Decision), decided
    assert decided.flow is not None
    return decided.flow


def refusal(condition: Any, policy: Policy | None = None) -> tuple[str, str]:
    """Return the code and the path of the refusal."""
    decided = parked(condition, policy)
    assert not isinstance(decided, Decision), decided
    return decided.code, decided.details.get("path", "")


def minted_in(flow: Flow) -> list[str]:
    """Return the correlation ids of a composite's parts."""
    return [part["correlation_id"] for part in (flow.wait_json or {})["conditions"]]


def nested(depth: int) -> dict[str, Any]:
    return manual() if depth == 1 else any_of(nested(depth - 1))


# What is accepted and what is refused (SEMANTICS 3, last paragraph).


@pytest.mark.parametrize("kind", ["any_of", "all_of"])
def test_a_condition_nests_four_deep_with_sixty_four_leaves_and_no_further(kind: str) -> None:
    leaves = [manual() for _ in range(MAX_LEAVES)]
    assert waits({"kind": kind, "conditions": leaves}).wait_json is not None
    assert refusal({"kind": kind, "conditions": [*leaves, manual()]}) == ("invalid_request", "/wait_condition")
    halves = {"kind": kind, "conditions": [{"kind": kind, "conditions": leaves[:32]}, at_least(3, *leaves[32:])]}
    assert waits(halves).wait_json is not None
    assert waits(nested(4)).wait_json is not None
    assert refusal(nested(5)) == ("invalid_request", "/wait_condition")


@pytest.mark.parametrize(
    "condition, code, path",
    [
        ({"kind": "timer", "at": at(-1)}, "timer_in_past", "/wait_condition/at"),
        ({"kind": "timer", "at": at(401 * 86_400)}, "horizon_exceeded", "/wait_condition/at"),
        ({"kind": "timer", "at": "2027-01-01T00:00:00"}, "invalid_request", "/wait_condition/at"),
        ({"kind": "timer"}, "invalid_request", "/wait_condition/at"),
        ({"kind": "timer", "after": "401d"}, "horizon_exceeded", "/wait_condition/at"),
        ({"kind": "timer", "after": "soon"}, "invalid_request", "/wait_condition/after"),
        ({"kind": "timer", "after": 5}, "invalid_request", "/wait_condition/after"),
        ({"kind": "timer", "after": "5s", "at": at(5)}, "invalid_request", "/wait_condition/after"),
        (any_of(manual(), {"kind": "timer", "after": "-5s"}), "invalid_request", "/wait_condition/conditions/1/after"),
        ({"kind": "sunset"}, "invalid_request", "/wait_condition/kind"),
        (external(deadline=at(-1)), "timer_in_past", "/wait_condition/deadline"),
        (external(timeout="401d"), "horizon_exceeded", "/wait_condition/deadline"),
        (external(timeout="soon"), "invalid_request", "/wait_condition/timeout"),
        (external(timeout="1m", deadline=at(60)), "invalid_request", "/wait_condition/timeout"),
        (external(on_timeout="shrug"), "invalid_request", "/wait_condition/on_timeout"),
        (external(wanted=1), "invalid_request", "/wait_condition/wanted"),
        (external(mode="some"), "invalid_request", "/wait_condition/mode"),
        (external(""), "invalid_request", "/wait_condition/correlation_id"),
        (external("c" * 257), "invalid_request", "/wait_condition/correlation_id"),
        (external("c\n"), "invalid_request", "/wait_condition/correlation_id"),
        (external(topic=""), "invalid_request", "/wait_condition/topic"),
        (external(topic="t\x7f"), "invalid_request", "/wait_condition/topic"),
        (external(to="x"), "invalid_request", "/wait_condition"),
        (any_of(), "invalid_request", "/wait_condition/conditions"),
        (any_of(external(), external()), "invalid_request", "/wait_condition/conditions"),
        (any_of(manual("ann"), all_of(manual("ann"))), "invalid_request", "/wait_condition/conditions"),
        (any_of(manual("")), "invalid_request", "/wait_condition/conditions/0/name"),
        (at_least(0, manual()), "invalid_request", "/wait_condition/count"),
        (at_least(3, manual(), manual()), "invalid_request", "/wait_condition/count"),
        (any_of(manual(), all_of(manual(timeout="401d"))), "horizon_exceeded", "/wait_condition/conditions/1/conditions/0/deadline"),
        (any_of(manual(), {"kind": "timer", "at": at(-1)}), "timer_in_past", "/wait_condition/conditions/1/at"),
        (any_of(manual(), external(topic="")), "invalid_request", "/wait_condition/conditions/1/topic"),
        (all_of(any_of(external("c\n"))), "invalid_request", "/wait_condition/conditions/0/conditions/0/correlation_id"),
        (any_of(manual(), external(timeout="soon")), "invalid_request", "/wait_condition/conditions/1/timeout"),
        (any_of(all_of(manual(timeout="1m", deadline=at(60)))), "invalid_request", "/wait_condition/conditions/0/conditions/0/timeout"),
        (any_of(manual(), {"kind": "timer", "at": LAST}), "invalid_request", "/wait_condition/conditions/1/at"),
        (any_of(manual(), at_least(2, manual())), "invalid_request", "/wait_condition/conditions/1/count"),
        (any_of(manual(), all_of()), "invalid_request", "/wait_condition/conditions/1/conditions"),
        (any_of({"kind": "timer", "at": at(5), "timeout": "1s"}), "invalid_request", "/wait_condition/conditions/0/timeout"),
        (external(accept={"type": "object"}), "invalid_request", "/wait_condition/accept"),
        ("manual", "invalid_request", "/wait_condition"),
        (None, "invalid_request", "/wait_condition"),
    ],
)
def test_what_could_never_happen_is_refused_at_once_and_by_name(condition: Any, code: str, path: str) -> None:
    assert refusal(condition) == (code, path)


@pytest.mark.parametrize(
    "condition, path, named",
    [
        ({"kind": "tmer"}, "/kind", "did you mean timer"),
        ({"kind": "sunset"}, "/kind", "external_event"),
        ({"kind": 5}, "/kind", "external_event"),
        ({}, "/kind", "external_event"),
        ({"kind": "timer", "att": at(5)}, "/att", "did you mean at?"),
        ({"kind": "timer", "timeout": "1s"}, "/timeout", "it takes at, after"),
        (external(wanted=1), "/wanted", "correlation_id"),
        ({"kind": "external_event"}, "/topic", "topic"),
        ({"kind": "timer", "at": "tomorrow"}, "/at", "2027-01-31T09:00:00Z"),
        ({"kind": "timer", "at": 5}, "/at", "2027-01-31T09:00:00Z"),
        ({"kind": "timer", "at": "2027-01-01T00:00:00"}, "/at", "zone"),
        (manual(deadline="soon"), "/deadline", "zone"),
        (external(mode="some"), "/mode", "one, all"),
        (external(mode=5), "/mode", "one, all"),
        (any_of(manual(on_timeout="shrug")), "/conditions/0/on_timeout", "resume, fail, cancel"),
        (any_of(manual(), manual(prompt=5)), "/conditions/1/prompt", "text"),
        ({"kind": "any_of", "conditions": {"kind": "timer"}}, "/conditions", "a list, not an object"),
        ({"kind": "any_of", "conditions": [None]}, "/conditions/0", "an object, not null"),
        (external(accept=1.5), "/accept", "an object, not a number"),
        ([], "", "an object, not a list"),
    ],
)
def test_what_is_misspelled_is_refused_with_what_would_be_right(condition: Any, path: str, named: str) -> None:
    refused = parked(condition)
    assert (refused.code, refused.details["path"]) == ("invalid_request", f"/wait_condition{path}")
    assert named in refused.message
    assert "`" not in refused.message  # as the decoder words it


def test_a_timeout_becomes_a_deadline_from_the_parking() -> None:
    wait = waits(any_of(external(timeout="15m"), manual(timeout="1h 30m"), timeout="2h")).wait_json
    assert wait is not None
    assert (wait["deadline"], wait["conditions"][0]["deadline"], wait["conditions"][1]["deadline"]) == (at(7200), at(900), at(5400))
    assert "timeout" not in wait


def test_a_timer_may_count_from_the_parking_and_is_kept_as_a_time() -> None:
    """SEMANTICS 3."""
    assert waits({"kind": "timer", "after": "15m"}).wait_json == {"kind": "timer", "at": at(900)}
    inside = waits(any_of(manual(), {"kind": "timer", "after": "1h 30m"})).wait_json or {}
    assert inside["conditions"][1] == {"kind": "timer", "at": at(5400)}
    assert waits({"kind": "timer", "after": "400d"}).wait_json == {"kind": "timer", "at": at(400 * 86_400)}


def test_the_default_timeout_bounds_waits_that_name_none() -> None:
    policy = Policy(default_timeout_us=60 * SECOND)
    assert (waits(manual(), policy).wait_json or {})["deadline"] == at(60)
    assert (waits(manual(timeout="5s"), policy).wait_json or {})["deadline"] == at(5)
    assert "deadline" not in (waits({"kind": "timer", "at": at(5)}, policy).wait_json or {})
    inner = waits(any_of(manual(), manual(timeout="5s")), policy).wait_json or {}
    assert inner["deadline"] == at(60)
    assert "deadline" not in inner["conditions"][0], "the whole is bounded, not each part again"


def test_correlation_ids_that_are_not_given_are_minted_and_all_different() -> None:
    """SEMANTICS R3."""
    minted = minted_in(waits(all_of(*({"kind": "external_event", "topic": "t"} for _ in range(3)))))
    assert len(set(minted)) == 3
    assert [str(UUID(one)) for one in minted] == minted, "whoever parses them as UUIDs writes them back the same"


def test_a_minted_correlation_id_does_not_tell_what_the_others_of_its_wait_are() -> None:
    """SEMANTICS R3: who is told the first to answer one leaf must not be able to answer for another."""
    minted = minted_in(waits(all_of(*({"kind": "external_event", "topic": "t"} for _ in range(3)))))
    for one, other in permutations(minted, 2):
        assert one[:16] not in other
        assert "nonce" not in one, "what they are all made from stays with the worker"


# When a condition holds, and what of it is still open.

TREE = parse(
    all_of(any_of(external("a"), external("b")), at_least(2, manual("x"), manual("y"), manual("z")), {"kind": "timer", "at": at(9)})
)


def test_leaves_and_nodes_are_numbered_depth_first_parents_before_their_parts() -> None:
    """SEMANTICS R12: what is told of a leaf is found under its depth-first number."""
    numbered = [(node.number, node.leaf, node.depth) for node in nodes(TREE)]
    assert numbered == [
        (0, None, 1),
        (1, None, 2),
        (2, 0, 3),
        (3, 1, 3),
        (4, None, 2),
        (5, 2, 3),
        (6, 3, 3),
        (7, 4, 3),
        (8, 5, 2),
    ]


@pytest.mark.parametrize(
    "progress, held",
    [
        ({}, False),
        ({"0": 1, "2": 1, "5": 1}, False),
        ({"1": 1, "2": 1, "4": 1, "5": 1}, True),
        ({"1": 1, "2": 1, "4": 1}, False),
        ({"node:1": 1, "node:4": 1, "5": 1}, True),
        ({"0": None, "2": None, "3": None, "5": None}, True),
    ],
)
def test_a_condition_holds_when_enough_of_its_parts_do(progress: dict[str, Any], held: bool) -> None:
    """SEMANTICS R11."""
    assert holds(TREE, progress) is held


def open_leaves(progress: dict[str, Any]) -> list[int]:
    return [node.leaf for node in open_nodes(TREE, progress) if node.leaf is not None]


@pytest.mark.parametrize(
    "progress, still",
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"0": 1}, [2, 3, 4, 5]),
        ({"2": 1}, [0, 1, 3, 4, 5]),
        ({"2": 1, "4": 1}, [0, 1, 5]),
        ({"node:1": 1}, [2, 3, 4, 5]),
        ({"1": 1, "node:4": 1}, [5]),
        ({"node:0": 1}, []),
    ],
)
def test_what_lies_below_a_part_that_holds_is_closed(progress: dict[str, Any], still: list[int]) -> None:
    """SEMANTICS R10: the winner closes every sibling leaf."""
    assert open_leaves(progress) == still


def test_what_is_closed_is_never_due() -> None:
    """SEMANTICS R10: the deadline of a part that holds, or of a loser below it, brings nothing about any more."""
    late = parse(all_of(any_of(external("a", timeout=None, deadline=at(5)), manual(), deadline=at(7)), manual(deadline=at(9))))
    assert [due for due, _ in due_times(late, {})] == [NOW + s * SECOND for s in (5, 7, 9)]
    assert [due for due, _ in due_times(late, {"1": None})] == [NOW + 9 * SECOND]
    assert [due for due, _ in due_times(late, {"node:1": None})] == [NOW + 9 * SECOND]


LEAF = st.sampled_from([external("c"), manual(), {"kind": "timer", "at": at(5)}])
CONDITION = st.recursive(LEAF, lambda below: st.lists(below, min_size=1, max_size=3).map(lambda parts: any_of(*parts)), max_leaves=8)


@given(CONDITION)
def test_a_condition_survives_being_stored(value: dict[str, Any]) -> None:
    condition = parse(value)
    assert from_value(to_value(condition)) == condition


@given(CONDITION, st.sets(st.integers(0, 8)))
def test_a_leaf_is_open_exactly_until_it_or_a_part_above_it_is_satisfied(value: dict[str, Any], satisfied: set[int]) -> None:
    """SEMANTICS R10, R11: for any_of, one satisfied leaf closes everything below each any_of above it."""
    condition = parse(value)
    progress = {str(leaf): None for leaf in satisfied}
    still = {node.leaf for node in open_nodes(condition, progress) if node.leaf is not None}
    assert not still & satisfied
    everything = {node.leaf for node in nodes(condition) if node.leaf is not None}
    if not satisfied & everything:
        assert still == everything
    if holds(condition, progress):
        assert not still
