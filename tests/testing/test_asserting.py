"""The asserts say what was there instead."""

from __future__ import annotations

import re

import pytest

from nats_taskflow.client import Flow, all_of, manual, reply, timer
from nats_taskflow.errors import BusLost
from nats_taskflow.testing import (
    TaskflowWorld,
    assert_cancelled,
    assert_events,
    assert_failed,
    assert_finished,
    assert_running,
    assert_waiting,
)
from nats_taskflow.testing.clock import Clock

TOPIC = "agent.delegate.reply"


async def parked(world: TaskflowWorld) -> Flow:
    kate = await world.client("kate")
    flow = await kate.start(controller_id="kate/approval", goal="approve the budget", state={"amount": 7})
    await flow.wait_reply(TOPIC, "c-1", timeout="2d", on_timeout="fail")
    return flow


async def test_an_assert_that_fails_tells_the_whole_story(taskflow: TaskflowWorld) -> None:
    flow = await parked(taskflow)
    await taskflow.clock.advance("3d")
    with pytest.raises(AssertionError) as failed:
        await taskflow.assert_running(flow)
    told = str(failed.value)
    assert told.startswith(f"flow {flow.id} is failed, not running\nthe story of {flow.id} (kate/approval: 'approve the budget')\n")
    assert re.search(r"3  \+0s  waiting  by agent:kate  for a reply on agent.delegate.reply for c-1, until \d{4}-", told)
    assert re.search(r"4  \+2d  failed   by worker      .*wait timed out", told)
    assert "now failed, step 'init', revision 3, state {\"amount\":7," in told
    assert "wait timed out. Nothing changes it any more." in told


async def test_a_wait_for_something_else_is_said(taskflow: TaskflowWorld) -> None:
    flow = await parked(taskflow)
    with pytest.raises(AssertionError, match=r"agent\.delegate\.reply .*c-1.*not .*c-2"):
        await taskflow.assert_waiting(flow, corr="c-2")
    with pytest.raises(AssertionError, match=r"topic x .*c-1"):
        await taskflow.assert_waiting(flow, topic="x", corr="c-1")
    with pytest.raises(AssertionError, match="timer"):
        await taskflow.assert_waiting(flow, kind="timer")
    with pytest.raises(AssertionError, match="is at step 'init', not 'review'"):
        await taskflow.assert_waiting(flow, step="review")
    shown = await taskflow.assert_waiting(flow.id, topic=TOPIC, corr="c-1", kind="external_event", step="init")
    assert shown["id"] == flow.id


async def test_a_reply_deep_in_a_composite_is_waited_for_too(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="g")
    await flow.wait(all_of(timer("1d"), all_of(reply(TOPIC, "c-1"), manual("agreed?"))))
    await taskflow.assert_waiting(flow, topic=TOPIC, corr="c-1")
    with pytest.raises(AssertionError, match=r"waits for all_of of \(the time .*; all_of of \(a reply on .* for c-1; manual\)\), not for"):
        await taskflow.assert_waiting(flow, corr="c-9")


async def test_states_are_compared_as_far_as_they_are_named(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="g", state={"a": 1, "b": 2})
    await taskflow.assert_running(flow, state={"a": 1})
    with pytest.raises(AssertionError, match="has 'a' = 1 in its state, not 2"):
        await taskflow.assert_running(flow, state={"a": 2})
    with pytest.raises(AssertionError, match="'c'"):
        await taskflow.assert_running(flow, state={"c": 3})
    await flow.fail("out of budget")
    await taskflow.assert_failed(flow, reason="budget")
    with pytest.raises(AssertionError, match="has failed because of 'out of budget', not 'time'"):
        await taskflow.assert_failed(flow, reason="time")


async def test_events_are_compared_in_their_order_with_any_number_left_out(taskflow: TaskflowWorld) -> None:
    flow = await parked(taskflow)
    await flow.cancel("enough")
    await taskflow.assert_cancelled(flow)
    await taskflow.assert_events(["created", "started", "waiting", "cancelled"])
    await taskflow.assert_events(["created", "...", "cancelled"])
    await taskflow.assert_events(["..."])
    with pytest.raises(AssertionError, match="has the events created, started, waiting, cancelled; asserted were created, cancelled"):
        await taskflow.assert_events(["created", "cancelled"])
    await parked_again(taskflow)
    with pytest.raises(AssertionError, match=r"flow=.*kate/x, running.*kate/approval, cancelled"):
        await taskflow.assert_events(["..."])
    await taskflow.assert_events(["...", "cancelled"], flow=flow)


async def parked_again(world: TaskflowWorld) -> None:
    await (await world.client("kate")).start(controller_id="kate/x", goal="g")


async def test_an_assert_sees_what_is_still_on_its_way(taskflow: TaskflowWorld) -> None:
    flow = await parked(taskflow)
    await taskflow.publish(TOPIC, {"correlation_id": "c-1", "payload": 42}, msg_id="e-1")  # nobody waits for its outcome
    await taskflow.assert_running(flow, state={"resume_event": 42})


async def test_an_assert_without_await_does_not_pass() -> None:
    async def forgetful() -> None:
        async with TaskflowWorld() as world:
            kate = await world.client("kate")
            flow = await kate.start(controller_id="kate/x", goal="g")
            world.assert_finished(flow)  # type: ignore[unused-coroutine]

    with pytest.raises(AssertionError, match=r"assert_finished\(\) was called without await: it has asserted nothing"):
        await forgetful()


async def test_what_fails_beside_the_test_fails_the_test() -> None:
    async def broken() -> None:
        message = "the agent is broken"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="the agent is broken"):
        async with TaskflowWorld() as world:
            world.run(broken())


async def test_a_worker_that_ends_by_itself_fails_the_test() -> None:
    with pytest.raises(BusLost, match="NATS is lost for good: gone"):
        async with TaskflowWorld() as world:
            world._worker._bus.lose("gone")


async def test_the_asserts_are_functions_too_of_the_one_world_that_is_open(taskflow: TaskflowWorld, taskflow_clock: Clock) -> None:
    assert taskflow_clock is taskflow.clock
    flow = await parked(taskflow)
    await assert_waiting(flow, topic=TOPIC, corr="c-1")
    await assert_events(["created", "started", "waiting"])
    with pytest.raises(AssertionError, match="is waiting, not running"):
        await assert_running(flow)
    await taskflow_clock.advance("3d")
    await assert_failed(flow, reason="timed out")
    for wrong in (assert_finished, assert_cancelled):
        with pytest.raises(AssertionError, match="is failed, not"):
            await wrong(flow)


async def test_a_function_says_which_world_it_misses(taskflow: TaskflowWorld) -> None:
    other = TaskflowWorld()
    other.begin()
    try:
        with pytest.raises(AssertionError, match="2 are open"):
            await assert_events([])
        taskflow.end()
        other.end()
        with pytest.raises(AssertionError, match="fixture"):
            await assert_events([])
        other.begin()
    finally:
        other.end()
        taskflow.begin()
