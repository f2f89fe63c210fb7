"""What an agent's flows may take: how many are open, and the bytes of their states (CONTRACT 3, RELIABILITY 9)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nats_taskflow.errors import FlowError, QuotaExceeded
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import (
    AdvanceFlow,
    Caller,
    CancelFlow,
    DeadlinePassed,
    DelegateFlow,
    FailFlow,
    FinishFlow,
    ParkFlow,
    Reply,
    ResumeFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.flow.usage import Usage
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND, rfc3339
from tests.flows import BOB, KATE, TOPIC, any_of, external, manual

NOW = 1_800_000_000 * SECOND
BY_KATE = Caller(actor="agent:kate", owner=KATE)
EMPTY = {"text": ""}
FULL = {"text": "x" * (1000 - len('{"text":""}'))}
MORE = {"more": "y"}
FEW = Policy(max_open_flows=2)
SMALL = Policy(max_open_flows=None, max_state_bytes_of_agent=1000)


def starting(flow_id: str, owner: str = KATE, **more: Any) -> StartFlow:
    by = Caller(actor="agent", owner=owner)
    return StartFlow(**{"flow_id": flow_id, "controller_id": "k", "goal": "g", "owner_session_key": owner, "caller": by, **more})


def carried_out(world: World, policy: Policy, *stimuli: Stimulus, at: int = NOW) -> list[str]:
    """Decide and apply one after the other; say of each what was refused."""
    said = []
    for stimulus in stimuli:
        decision = decide(stimulus, world, at, policy)
        if isinstance(decision, Decision):
            world.apply(decision)
        said.append(decision.code if isinstance(decision, FlowError) else "ok")
    return said


def full(condition: dict[str, Any] | None = None) -> World:
    """Return a world in which one flow of kate's, `f`, has as many bytes of state as all of hers may have, and waits if it is to."""
    world = World()
    parking = [ParkFlow(flow_id="f", condition=condition, nonce="n", caller=BY_KATE)] if condition is not None else []
    assert set(carried_out(world, SMALL, starting("f", state_json=FULL), *parking)) == {"ok"}
    assert world.usage("kate") == Usage(1, 1000)
    return world


def test_flows_beyond_the_quota_are_not_started_by_whichever_session_and_an_end_makes_room() -> None:
    world = World()
    other = starting("b", "agent:kate:session:other")
    assert carried_out(world, FEW, starting("a"), other, starting("c")) == ["ok", "ok", "quota_exceeded"]
    refused = decide(starting("c"), world, NOW, FEW)
    assert isinstance(refused, QuotaExceeded)
    assert refused.details == {"quota": "open_flows", "limit": 2, "used": 2, "retry_after": 60}
    assert carried_out(world, FEW, starting("d", BOB)) == ["ok"], "another agent has its own"
    assert carried_out(world, FEW, CancelFlow(flow_id="a", caller=BY_KATE), starting("c"), starting("e")) == ["ok", "ok", "quota_exceeded"]


@pytest.mark.parametrize("more", [{"hold": True}, {"mirrored": True}, {"parent_flow_id": "a"}], ids=str)
def test_flows_that_are_held_mirrored_or_children_count_like_any_other(more: dict[str, Any]) -> None:
    world = World()
    assert carried_out(world, FEW, starting("a"), starting("b", **more), starting("c", **more)) == ["ok", "ok", "quota_exceeded"]


def test_a_start_that_finds_its_flow_there_is_refused_for_no_quota() -> None:
    world = World()
    again = starting("a", minted=False, idempotency_key="key")
    assert carried_out(world, FEW, again, starting("b"), again) == ["ok"] * 3


@pytest.mark.parametrize(
    "condition, command",
    [
        (None, AdvanceFlow(flow_id="f", patch=MORE, caller=BY_KATE)),
        (manual(), ResumeFlow(flow_id="f", patch=MORE, caller=BY_KATE)),
        (any_of(manual("yes")), ResumeFlow(flow_id="f", leaf="yes", patch=MORE, caller=BY_KATE)),
        (None, starting("g")),
    ],
    ids=["advance", "resume", "resume a leaf", "start"],
)
def test_a_command_that_lets_states_grow_beyond_the_quota_is_refused(condition: dict[str, Any] | None, command: Stimulus) -> None:
    refused = decide(command, full(condition), NOW, SMALL)
    assert isinstance(refused, QuotaExceeded)
    assert refused.details == {"quota": "state_bytes", "limit": 1000, "used": 1000, "retry_after": 60}


@pytest.mark.parametrize(
    "condition, stimulus",
    [
        (None, AdvanceFlow(flow_id="f", patch={"text": FULL["text"].replace("x", "y")}, caller=BY_KATE)),
        (None, AdvanceFlow(flow_id="f", patch=EMPTY, caller=BY_KATE)),
        (None, FinishFlow(flow_id="f", final_state=MORE, caller=BY_KATE)),
        (None, FailFlow(flow_id="f", reason="broke", caller=BY_KATE)),
        (None, CancelFlow(flow_id="f", caller=BY_KATE)),
        (None, ParkFlow(flow_id="f", condition=manual(), nonce="n", caller=BY_KATE)),
        (None, DelegateFlow(flow_id="f", to="d", payload={}, reply_topic=TOPIC, correlation_id="c", caller=BY_KATE)),
        (None, AdvanceFlow(flow_id="f", patch=MORE)),
        (manual(), ResumeFlow(flow_id="f", caller=BY_KATE)),
        (manual(), ResumeFlow(flow_id="f", patch=MORE, caller=Caller(actor="operator:ann"))),
        (external(), Reply(topic=TOPIC, correlation_id="c", payload=MORE, event_id="e", arrived_us=NOW)),
        (
            manual(deadline=rfc3339(NOW + SECOND), on_timeout="fail"),
            DeadlinePassed(flow_id="f", wait_id=2, at_us=NOW + SECOND),
        ),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'patch', '')}"[:30] if isinstance(value, msgspec.Struct) else "",
)
def test_what_ends_or_shrinks_a_flow_and_replies_time_and_operators_are_refused_for_no_quota(
    condition: dict[str, Any] | None, stimulus: Stimulus
) -> None:
    world = full(condition)
    assert carried_out(world, SMALL, stimulus, at=NOW + SECOND) == ["ok"]
    flow = world.flow("f")
    assert flow is not None
    assert world.usage("kate") == Usage(int(not flow.terminal), len(msgspec.json.encode(flow.state_json))), "but counted it is"


def test_the_state_of_a_flow_counts_after_its_end() -> None:
    world = full()
    ended = FinishFlow(flow_id="f", caller=BY_KATE)
    assert carried_out(world, SMALL, ended, starting("g")) == ["ok", "quota_exceeded"]


def test_what_a_reply_brought_beyond_the_quota_keeps_commands_from_adding_until_a_state_shrinks() -> None:
    world = full(external())
    reply = Reply(topic=TOPIC, correlation_id="c", payload=FULL, event_id="e", arrived_us=NOW)
    shrinking = AdvanceFlow(flow_id="f", patch={**EMPTY, "resume_event": None}, caller=BY_KATE)
    assert carried_out(world, SMALL, reply, starting("g"), shrinking, starting("g")) == ["ok", "quota_exceeded", "ok", "ok"]


def test_the_flows_of_an_owner_that_is_no_agent_have_no_quota() -> None:
    world = World()
    nobodys = [starting(str(n), "owner", caller=Caller(actor="local")) for n in range(3)]
    assert carried_out(world, FEW, *nobodys) == ["ok"] * 3
    assert world.usages.changed == {}
