"""Matching on a world that is not as tidy as the store keeps it: the core decides by what it sees, not by what it was promised."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, HeldReply, Waiter
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import ParkFlow, Reply
from nats_taskflow.flow.view import World

NOW = 1_800_000_000_000_000
EXTERNAL = {"kind": "external_event", "topic": "t", "correlation_id": "c"}


def a_world(status: FlowStatus, **changes: Any) -> World:
    flow = Flow(
        id="f",
        controller_id="c",
        goal="g",
        owner_session_key="o",
        requester_origin="",
        current_step="s",
        status=status,
        created_us=NOW,
        updated_us=NOW,
        revision=5,
        seq=6,
    )
    world = World()
    world.flows["f"] = replace(flow, **changes)
    return world


def a_reply(**changes: Any) -> Reply:
    return replace(Reply(topic="t", correlation_id="c", payload={}, event_id="e", arrived_us=NOW, key="k"), **changes)


def outcome(world: World, reply: Reply) -> str:
    decided = decide(reply, world, NOW, Policy())
    assert isinstance(decided, Decision)
    return decided.outcome


def test_a_wait_left_over_from_an_older_generation_is_no_wait() -> None:
    """SEMANTICS R8: the match checks the generation."""
    world = a_world(FlowStatus.WAITING, wait_json=EXTERNAL, wait_id=5)
    world.add_waiter(Waiter(flow_id="f", wait_id=3, leaf=0, topic="t", correlation_id="c"))
    assert outcome(world, a_reply()) == "held"
    world.add_waiter(Waiter(flow_id="f", wait_id=5, leaf=0, topic="t", correlation_id="c"))
    assert outcome(world, a_reply()) == "resumed"


def test_a_wait_of_a_flow_that_does_not_wait_is_no_wait() -> None:
    """SEMANTICS R8."""
    world = a_world(FlowStatus.RUNNING)
    world.add_waiter(Waiter(flow_id="f", wait_id=5, leaf=0, topic="t", correlation_id="c"))
    assert outcome(world, a_reply()) == "held"


def test_expiry_is_decided_when_the_flow_parks_and_not_by_a_sweeper() -> None:
    """SEMANTICS R4."""
    world = a_world(FlowStatus.RUNNING)
    held = HeldReply(topic="t", correlation_id="c", event_id="e", payload={}, arrived_us=NOW - 9, expires_us=NOW, key="k")
    world.replies["t", "c"] = [held]
    command = ParkFlow(flow_id="f", condition=EXTERNAL, nonce="n" * 32)
    expired = decide(command, world, NOW, Policy())
    in_time = decide(command, world, NOW - 1, Policy())
    assert isinstance(expired, Decision)
    assert isinstance(in_time, Decision)
    assert (len(expired.taken), len(in_time.taken)) == (0, 1)


def test_a_reply_is_held_for_its_time_from_when_it_was_taken_in() -> None:
    """SEMANTICS R4: a backlog that is caught up late loses no reply to the time it lay in the stream."""
    decided = decide(a_reply(arrived_us=NOW - 10**12), World(), NOW, Policy(held_ttl_us=7))
    assert isinstance(decided, Decision)
    assert decided.hold is not None
    assert (decided.hold.expires_us, decided.hold.arrived_us) == (NOW + 7, NOW - 10**12)
