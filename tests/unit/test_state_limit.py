"""How large a command may make a flow's state (RELIABILITY 4, row 25), and that the limit keeps nobody from ending or resuming one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nats_taskflow.errors import FlowError, TooLarge
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import AdvanceFlow, Command, FailFlow, FinishFlow, ParkFlow, ResumeFlow, StartFlow, Stimulus
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND

NOW = 1_800_000_000 * SECOND
POLICY = Policy(max_state_bytes=1000)
FULL = {"kept": "x" * (1000 - len('{"kept":""}'))}
MORE = {"more": "y"}


def full(*, waiting: bool = False) -> World:
    """Return a world with one flow, `f`, whose state has as many bytes as it may have."""
    world = World()
    done(world, StartFlow(flow_id="f", controller_id="k", goal="g", owner_session_key="o", state_json=FULL))
    if waiting:
        done(world, ParkFlow(flow_id="f", condition={"kind": "manual"}, nonce="n"))
    assert len(msgspec.json.encode(FULL)) == POLICY.max_state_bytes
    return world


def decided(world: World, command: Stimulus) -> Decision | FlowError:
    return decide(command, world, NOW, POLICY)


def done(world: World, command: Stimulus) -> Any:
    decision = decided(world, command)
    assert isinstance(decision, Decision), decision
    world.apply(decision)
    return decision.flow


@pytest.mark.parametrize(
    "command, path",
    [
        (AdvanceFlow(flow_id="f", patch=MORE), "/patch"),
        (FinishFlow(flow_id="f", final_state=MORE), "/final_state"),
        (ResumeFlow(flow_id="f", patch=MORE), "/patch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Command) else "",
)
def test_what_makes_the_state_too_large_is_refused_by_the_name_of_the_verbs_own_field(command: Stimulus, path: str) -> None:
    refused = decided(full(waiting=isinstance(command, ResumeFlow)), command)
    assert isinstance(refused, TooLarge)
    assert (refused.details["path"], refused.details["limit"]) == (path, 1000)


def test_a_flow_with_a_full_state_can_be_resumed_and_the_workers_own_keys_do_not_count() -> None:
    """SEMANTICS 2: explicit, whatever the wait. The caller brought nothing that could be made smaller."""
    flow = done(full(waiting=True), ResumeFlow(flow_id="f"))
    assert flow.status is FlowStatus.RUNNING
    assert flow.state_json["resume_meta"]["cause"] == "manual"


@pytest.mark.parametrize("waiting", [False, True])
def test_a_flow_with_a_full_state_can_fail_and_says_why(waiting: bool) -> None:
    """SEMANTICS 2: running or waiting → failed. The reason has a limit of its own."""
    flow = done(full(waiting=waiting), FailFlow(flow_id="f", reason="r" * 500))
    assert (flow.status, flow.state_json["failure"]["reason"]) == (FlowStatus.FAILED, "r" * 500)


def test_a_flow_with_a_full_state_can_finish_and_grow_smaller() -> None:
    world = full()
    assert done(world, AdvanceFlow(flow_id="f", patch={"kept": None})).state_json == {"kept": None}
    assert done(world, FinishFlow(flow_id="f", final_state=MORE)).status is FlowStatus.FINISHED
