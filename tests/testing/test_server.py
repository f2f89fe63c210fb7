"""The same asserts on a real nats-server with a real worker process, which is killed and started again."""

from __future__ import annotations

import pytest

from nats_taskflow.testing import TaskflowServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.mark.taskflow(reply_topics=["bills.paid"])
async def test_a_reply_that_comes_while_the_real_worker_is_dead_is_not_lost(taskflow_nats: TaskflowServer) -> None:
    kate = await taskflow_nats.client("kate")
    flow = await kate.start(controller_id="kate/bills", goal="wait for the money")
    await flow.wait_reply("bills.paid", "b-1")
    await taskflow_nats.assert_waiting(flow, topic="bills.paid", corr="b-1")
    await taskflow_nats.kill()
    await kate.reply("bills.paid", "b-1", {"amount": 7})
    await taskflow_nats.start()
    await taskflow_nats.assert_running(flow, state={"resume_event": {"amount": 7}})
    await taskflow_nats.assert_events(["created", "started", "waiting", "resumed"])


async def test_an_assert_becomes_true_in_time_or_fails_with_the_story() -> None:
    async with TaskflowServer(patience=0.2) as server:
        kate = await server.client("kate")
        flow = await kate.start(controller_id="kate/x", goal="g")
        with pytest.raises(AssertionError, match=r"is running, not finished\nthe story of"):
            await server.assert_finished(flow)
        await flow.wait_timer("100ms")
        await flow.resumed()
        await server.stop()
        await server.start()
        await flow.finish()
        await server.assert_finished(flow)


async def test_a_worker_that_does_not_start_says_why() -> None:
    with pytest.raises(AssertionError, match=r"(?s)the worker did not start:.*TASKFLOW_LOG_LEVEL"):
        async with TaskflowServer(environment={"TASKFLOW_LOG_LEVEL": "shouting"}):
            pass
