"""Slow carriers, without waiting for them: `pytest examples/fan_out`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from quotes import CARRIERS, ask, choose, late_replies

from nats_taskflow.client import DelegateCall, Flow, FlowClient, serve_delegate
from nats_taskflow.testing import TaskflowWorld


async def carriers(serving: AsyncExitStack, flows: FlowClient, **minutes: int) -> None:
    """Serve the carriers; each answers after so many minutes, for as many euros."""

    def answering(after: int) -> Callable[[DelegateCall], Awaitable[dict[str, int]]]:
        async def quote(asked: DelegateCall) -> dict[str, int]:
            await asyncio.sleep(60 * after)
            return {"price": after}

        return quote

    for carrier in CARRIERS:
        await serving.enter_async_context(serve_delegate(f"carriers.{carrier}.quote", answering(minutes[carrier]), on=flows))


async def asked(taskflow: TaskflowWorld, kate: FlowClient) -> Flow:
    """Ask all carriers, and choose when there is something to choose from."""
    flow = await ask(kate, {"kg": 7})
    taskflow.run(choose(flow))
    return flow


async def test_the_first_two_answers_count_and_the_third_is_late(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    async with AsyncExitStack() as serving:
        await carriers(serving, kate, rail=30, road=50, sea=20)
        flow = await asked(taskflow, kate)
        await taskflow.clock.advance("29m")
        await taskflow.assert_waiting(flow)
        await taskflow.clock.advance("1m")
        await taskflow.assert_finished(flow, state={"carrier": "sea", "quotes": {"rail": 30, "sea": 20}})
        assert await late_replies(kate) == 0
        await taskflow.clock.advance("20m")
        assert await late_replies(kate) == 1
    await taskflow.assert_events(["created", "started", "waiting", "wait_progressed", "wait_progressed", "resumed", "finished"])


async def test_one_answer_within_the_hour_is_not_enough(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    async with AsyncExitStack() as serving:
        await carriers(serving, kate, rail=30, road=90, sea=200)
        flow = await ask(kate, {"kg": 7})
        await taskflow.clock.advance("1h")
        await taskflow.assert_failed(flow, reason="wait timed out")
        await taskflow.clock.advance("1d")
        assert await late_replies(kate) == 2
