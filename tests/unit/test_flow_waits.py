"""Wait conditions by themselves (SEMANTICS 3): their numbers, when they hold, what time does to them, and what is said of bad ones."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.errors import FlowError, InvalidRequest
from nats_taskflow.flow.conditions import (
    AllOf,
    AnyOf,
    AtLeast,
    Composite,
    ExternalEvent,
    Manual,
    Timer,
    WaitCondition,
    deadline_of,
    due_times,
    from_value,
    holds,
    nodes,
    parse,
    to_value,
)
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.end import due_of
from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import ParkFlow
from nats_taskflow.flow.view import World
from nats_taskflow.units import to_micros

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def later(seconds: int) -> datetime:
    return NOW + timedelta(seconds=seconds)


times = st.integers(min_value=1, max_value=1000).map(later)
deadlines = st.none() | times
leaves = st.one_of(
    st.builds(Timer, at=times),
    st.builds(Manual, deadline=deadlines),
    st.builds(ExternalEvent, topic=st.just("t"), correlation_id=st.text("abc", min_size=1), deadline=deadlines),
)


def composites(parts: st.SearchStrategy[WaitCondition]) -> st.SearchStrategy[WaitCondition]:
    some = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(AnyOf, conditions=some, deadline=deadlines),
        st.builds(AllOf, conditions=some, deadline=deadlines),
        some.flatmap(lambda given: st.builds(AtLeast, conditions=st.just(given), count=st.integers(1, len(given)), deadline=deadlines)),
    )


conditions: st.SearchStrategy[WaitCondition] = st.recursive(leaves, composites, max_leaves=12)


@given(conditions)
def test_a_condition_is_read_back_from_what_is_stored_of_it(condition: WaitCondition) -> None:
    assert parse(to_value(condition)) == condition
    assert from_value(to_value(condition)) == condition


@given(conditions)
def test_leaves_are_numbered_depth_first_and_parts_before_what_is_below_them(condition: WaitCondition) -> None:
    walked = list(nodes(condition))
    assert [node.number for node in walked] == list(range(len(walked)))
    assert [node.leaf for node in walked if node.leaf is not None] == list(range(sum(node.leaf is not None for node in walked)))
    assert all((node.leaf is None) == isinstance(node.condition, Composite) for node in walked)


@given(conditions, st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_a_condition_holds_when_enough_of_its_parts_do(condition: WaitCondition, answered: set[int], ended: set[int]) -> None:
    """SEMANTICS R11, against a walk of its own."""
    walked = iter(list(nodes(condition)))

    def expected(part: WaitCondition) -> bool:
        node = next(walked)
        assert node.condition is part
        if not isinstance(part, Composite):
            return node.leaf in answered
        held = [expected(below) for below in part.conditions]
        enough = {AnyOf: any(held), AllOf: all(held)}.get(type(part), sum(held) >= getattr(part, "count", 0))
        return enough or node.number in ended

    progress = {str(leaf): None for leaf in answered} | {f"node:{number}": None for number in ended}
    assert holds(condition, progress) == expected(condition)


@given(conditions)
def test_a_leaf_is_bounded_by_every_deadline_above_it(condition: WaitCondition) -> None:
    """SEMANTICS R9."""

    def walk(part: WaitCondition, above: list[datetime]) -> list[datetime | None]:
        own = None if isinstance(part, Timer) else part.deadline
        bounds = above if own is None else [*above, own]
        if not isinstance(part, Composite):
            return [min(bounds, default=None)]
        return [one for below in part.conditions for one in walk(below, bounds)]

    for leaf, bound in enumerate(walk(condition, [])):
        assert deadline_of(condition, leaf) == (to_micros(bound) if bound is not None else None)


@given(conditions)
def test_time_acts_earliest_first_on_what_is_not_satisfied_yet(condition: WaitCondition) -> None:
    everything = due_times(condition, {})
    assert [at for at, _ in everything] == sorted(at for at, _ in everything)
    for _, node in everything:
        key = str(node.leaf) if node.leaf is not None else f"node:{node.number}"
        assert node.number not in {other.number for _, other in due_times(condition, {key: None})}


# --- bad ones


def a_flow(**changes: Any) -> Flow:
    born: dict[str, Any] = {"controller_id": "c", "goal": "g", "owner_session_key": "o", "requester_origin": "", "current_step": "s"}
    return Flow(id="f", status=FlowStatus.RUNNING, created_us=0, updated_us=0, **born, **changes)


def refused(condition: Any) -> FlowError:
    world = World()
    world.flows["f"] = a_flow()
    decided = decide(ParkFlow(flow_id="f", condition=condition, nonce="n" * 32), world, to_micros(NOW), Policy())
    assert isinstance(decided, FlowError)
    return decided


def nested(depth: int) -> dict[str, Any]:
    return {"kind": "manual"} if depth == 1 else {"kind": "any_of", "conditions": [nested(depth - 1)]}


@pytest.mark.parametrize(
    "condition, path",
    [
        (None, "/wait_condition"),
        ([], "/wait_condition"),
        ({}, "/wait_condition/kind"),
        ({"kind": "timer"}, "/wait_condition/at"),
        ({"kind": "timer", "at": "tomorrow"}, "/wait_condition/at"),
        ({"kind": "manual", "promt": "?"}, "/wait_condition/promt"),
        ({"kind": "manual", "on_timeout": "explode"}, "/wait_condition/on_timeout"),
        ({"kind": "manual", "timeout": "5"}, "/wait_condition/timeout"),
        ({"kind": "any_of", "conditions": [{"kind": "manual"}, {"kind": "timer", "at": 5}]}, "/wait_condition/conditions/1/at"),
        ({"kind": "external_event", "topic": "t", "mode": "some"}, "/wait_condition/mode"),
        (nested(5), "/wait_condition"),
        ({"kind": "manual", "a/b~c": 1}, "/wait_condition/a~1b~0c"),
        ({"kind": "any_of", "conditions": [{"kind": "manual", "of `$.kind`": 1}]}, "/wait_condition/conditions/0/of `$.kind`"),
        ({"kind": "all_of", "conditions": [{"kind": "sunset"}]}, "/wait_condition/conditions/0/kind"),
    ],
)
def test_a_refusal_names_the_place(condition: Any, path: str) -> None:
    """CONTRACT 3: `details.path`."""
    error = refused(condition)
    assert isinstance(error, InvalidRequest)
    assert error.details["path"] == path


@pytest.mark.parametrize("kind", [{}, {"kind": None}, {"kind": "Manual"}, {"kind": 5}])
def test_a_kind_that_is_none_is_answered_with_those_there_are(kind: dict[str, Any]) -> None:
    """SEMANTICS 3, and `flow`."""
    message = refused({"kind": "any_of", "conditions": [kind]}).message
    for known in ("timer", "external_event", "flow", "manual", "any_of", "all_of", "at_least"):
        assert known in message
    assert "$" not in message, "the path says where"


def test_a_condition_nests_as_deep_as_allowed() -> None:
    """SEMANTICS 3: depth ≤ 4."""
    assert max(node.depth for node in nodes(parse(nested(4)))) == 4
    assert "4 deep" in refused(nested(5)).message


@pytest.mark.parametrize(
    "owner, agent",
    [
        ("agent:kate:session:abc", "kate"),
        ("agent:kate:session:a:b:c", "kate"),
        ("agent:kate:session", None),
        ("agent:kate", None),
        ("someone", None),
        ("", None),
        ("agent:kate:other:x", None),
    ],
)
def test_the_agent_of_an_owner_is_read_from_its_key(owner: str, agent: str | None) -> None:
    """SEMANTICS 1."""
    assert agent_of(owner) == agent


def test_a_flow_that_does_not_wait_is_never_due() -> None:
    assert due_of(a_flow(cancel_requested=True)) is None


RACE = """
import os, sys, threading
from nats_taskflow.flow import conditions

def read_by_many_at_once():
    sys.setswitchinterval(1e-7)
    together = threading.Barrier(8)
    readers = [threading.Thread(target=lambda: (together.wait(), conditions.parse({"kind": "manual"}))) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

for _ in range(30):
    if (pid := os.fork()) == 0:
        read_by_many_at_once()
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"ended with {code}")
"""


def test_threads_that_read_their_first_condition_at_the_same_time_do_not_crash_the_process() -> None:
    """Of a struct that it has not met, msgspec 0.22 shows a second thread the types before they are there: a null pointer."""
    done = subprocess.run([sys.executable, "-c", RACE], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
