"""The virtual clock: everything that is due on the way happens, in its order, at its time, and all that follows from it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from nats_taskflow.client import Agent, Event, Flow, FlowClient, any_of, manual, reply, serve_delegate, timer
from nats_taskflow.client.delegate_messages import DelegateCall
from nats_taskflow.testing import TaskflowWorld
from nats_taskflow.testing.loop_time import NeverAtRest

TOPIC = "agent.delegate.reply"
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


async def started(flows: FlowClient, goal: str = "test") -> Flow:
    return await flows.start(controller_id="kate/test", goal=goal)


@pytest.mark.taskflow(at=NEW_YEAR)
async def test_timers_fire_in_their_order_each_at_its_time(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flows = {days: await started(kate, f"{days} days") for days in (3, 1, 2)}
    for days, flow in flows.items():
        await flow.wait_timer(f"{days}d")
    woken: list[tuple[str, datetime]] = []

    async def listen() -> None:
        async for event in kate.events(kinds={"resumed"}):
            woken.append((event.flow_id, taskflow.clock.now()))  # noqa: PERF401  each when it comes

    taskflow.run(listen())
    await taskflow.clock.advance("2d 12h")
    assert woken == [(flows[days].id, NEW_YEAR + timedelta(days=days)) for days in (1, 2)]
    assert taskflow.clock.now() == NEW_YEAR + timedelta(days=2, hours=12)
    await taskflow.assert_waiting(flows[3], kind="timer")
    await taskflow.clock.advance_to(NEW_YEAR + timedelta(days=3))
    await taskflow.assert_running(flows[3])


async def test_what_a_handler_parks_on_the_way_is_due_on_the_same_way(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    agent = Agent(kate, name="nights")
    nights: list[datetime] = []

    @agent.on("resumed")
    async def sleep_again(flow: Flow, event: Event) -> None:
        nights.append(taskflow.clock.now())
        if len(nights) < 5:
            await flow.wait_timer("1d")
        else:
            await flow.finish({"nights": len(nights)})

    taskflow.run(agent.run())
    flow = await started(kate)
    begun = taskflow.clock.now()
    await flow.wait_timer("1d")
    await taskflow.clock.advance("10d")
    assert nights == [begun + timedelta(days=day) for day in range(1, 6)]
    await taskflow.assert_finished(flow, state={"nights": 5})


@pytest.mark.parametrize("comes, cause", [(-1, "event"), (0, "timeout"), (1, "timeout")])
async def test_a_reply_wins_only_if_it_comes_before_the_deadline(taskflow: TaskflowWorld, comes: int, cause: str) -> None:
    kate = await taskflow.client("kate")
    flow = await started(kate)
    await flow.wait_reply(TOPIC, "c-1", timeout="1h")

    async def answer() -> None:
        await asyncio.sleep(3600 + comes)
        await kate.reply(TOPIC, "c-1", {"answer": 42})

    taskflow.run(answer())
    await taskflow.clock.advance("2h")
    it = await taskflow.assert_running(flow)
    assert it["state"]["resume_meta"]["cause"] == cause


async def test_a_timer_fires_at_its_time_however_long_the_machine_took_to_set_it(taskflow: TaskflowWorld) -> None:
    loop, fired = asyncio.get_running_loop(), list[datetime]()
    begun = taskflow.clock.now()
    when = loop.time() + 5400
    time.sleep(0.01)  # noqa: ASYNC251  another process has the processor
    assert when > loop.time()
    loop.call_at(when, lambda: fired.append(taskflow.clock.now()))
    await taskflow.clock.advance("1d")
    assert fired == [begun + timedelta(seconds=5400)]


async def test_sleeps_and_timeouts_of_the_code_under_test_follow_the_clock_in_order(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await started(kate)
    await flow.wait_timer("2h")
    seen: list[tuple[str, timedelta]] = []
    begun = taskflow.clock.now()

    def note(what: str) -> None:
        seen.append((what, taskflow.clock.now() - begun))

    async def sleeper() -> None:
        for _ in range(3):
            await asyncio.sleep(3600)
            note("slept")

    async def impatient() -> None:
        try:
            async with asyncio.timeout(5400):
                await asyncio.Event().wait()
        except TimeoutError:
            note("gave up")

    async def resumed() -> None:
        await flow.resumed()
        note("resumed")

    for work in (sleeper(), impatient(), resumed()):
        taskflow.run(work)
    await taskflow.clock.advance("1d")
    assert sorted(seen, key=lambda one: one[1]) == seen
    assert dict(seen) == {"slept": timedelta(hours=3), "gave up": timedelta(minutes=90), "resumed": timedelta(hours=2)}
    assert [what for what, _ in seen][:2] == ["slept", "gave up"]


@pytest.mark.taskflow(at=datetime(2020, 1, 1, tzinfo=UTC))  # by the machine's time its deadline was long ago
async def test_a_delegate_answers_on_the_clock(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")

    async def bill(asked: DelegateCall) -> dict[str, int]:
        await asyncio.sleep(1800)
        return {"paid": asked.payload["invoice"]}

    flow = await started(kate)
    async with serve_delegate("svc.billing", bill, on=kate):
        await flow.delegate("svc.billing", {"invoice": 7}, timeout="1h", on_timeout="fail")
        await taskflow.clock.advance("29m")
        await taskflow.assert_waiting(flow)
        await taskflow.clock.advance("2m")
        it = await taskflow.assert_running(flow)
    assert it["state"]["resume_event"] == {"paid": 7}


async def test_a_request_is_sent_again_until_a_delegate_listens(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await started(kate)
    await flow.delegate("svc.late", {}, timeout="1h")
    await taskflow.clock.advance("10m")

    async def answer(asked: DelegateCall) -> str:
        return "here I am"

    async with serve_delegate("svc.late", answer, on=kate):
        await taskflow.clock.advance("31s")  # at the latest: the dispatcher tries again every 30 s
        it = await taskflow.assert_running(flow)
    assert it["state"]["resume_event"] == "here I am"


async def test_a_held_reply_expires_into_the_dead_letters_at_its_time(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    await kate.reply(TOPIC, "nobody", 1)
    expires = taskflow.clock() + 24 * 3600 * 1_000_000
    await taskflow.clock.advance("23h 59m")
    assert not taskflow.broker.streams["TASKFLOW_DLQ"].messages
    await taskflow.clock.advance("3d")
    letters = list(taskflow.broker.streams["TASKFLOW_DLQ"].messages.values())
    assert [(letter.subject, letter.at_us) for letter in letters] == [("taskflow.dlq.expired", expires)]


async def test_an_ended_flow_is_gone_after_its_retention(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await started(kate)
    await flow.finish()
    await taskflow.clock.advance("29d 23h")
    await taskflow.assert_finished(flow)
    await taskflow.clock.advance("2h")
    with pytest.raises(AssertionError, match="there is no flow"):
        await taskflow.assert_finished(flow)
    await taskflow.assert_promises()


async def test_a_composite_wait_ends_with_the_first_of_its_parts(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await started(kate)
    await flow.wait(any_of(reply(TOPIC, "c-1"), manual("agreed?"), timer("3d")))
    await taskflow.assert_waiting(flow, topic=TOPIC, corr="c-1", kind="any_of")
    await taskflow.clock.advance("4d")
    await taskflow.assert_events(["created", "started", "waiting", "wait_progressed", "resumed"], flow=flow)


async def test_a_month_of_waiting_takes_no_time(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await started(kate)
    await flow.wait_reply(TOPIC, "c-1", timeout="29d")
    waiting = taskflow.run(flow.resumed())
    begun = time.monotonic()
    await taskflow.clock.advance("30d")
    assert time.monotonic() - begun < 5  # some 10 ms on an idle machine
    assert waiting.done()
    assert (await waiting).timed_out


async def test_a_clock_does_not_go_back(taskflow: TaskflowWorld) -> None:
    with pytest.raises(ValueError, match="a clock does not go back"):
        await taskflow.clock.advance_to(taskflow.clock.now() - timedelta(seconds=1))


async def test_what_a_thread_does_is_waited_for(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    agent = Agent(kate, name="threads")

    @agent.on("resumed")
    async def finish(flow: Flow, event: Event) -> None:
        await flow.finish({"sum": await asyncio.to_thread(sum, range(200_000))})

    taskflow.run(agent.run())
    flow = await started(kate)
    await flow.wait_timer("1h")
    await taskflow.clock.advance("1h")
    await taskflow.assert_finished(flow, state={"sum": 19999900000})


async def test_code_that_never_waits_is_told_of(taskflow: TaskflowWorld) -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110  this is the mistake
            await asyncio.sleep(0)

    spinning = taskflow.run(spin())
    with pytest.raises(NeverAtRest, match="without ever waiting for anything"):
        await taskflow.settled()
    spinning.cancel()


async def test_the_loop_has_its_own_time_again_after_the_world() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with TaskflowWorld() as world:
        await world.clock.advance("1d")
        assert loop.time() - before > 86_000
        with pytest.raises(RuntimeError, match="one at a time"):
            await TaskflowWorld().__aenter__()
    assert loop.time() - before < 3600
    assert not {"time", "call_at", "call_later", "run_in_executor"} & vars(loop).keys()
