"""What somebody who uses the client gets wrong is said at once, in a sentence, instead of being waited for in vain."""

from __future__ import annotations

import asyncio
import functools
import json
from datetime import timedelta
from typing import Any

import pytest

from nats_taskflow.client import (
    Agent,
    DelegateCall,
    Event,
    Flow,
    FlowClient,
    InvalidRequest,
    NoOutcome,
    TooLarge,
    Unavailable,
    UnsupportedVerb,
    manual,
    serve_delegate,
    timer,
)
from nats_taskflow.testing import TaskflowWorld

TOPIC = "agent.delegate.reply"


@pytest.mark.parametrize(
    "topic, correlation_id, said",
    [
        ("", "c", "topic is empty"),
        (7, "c", "topic must be text, not int"),
        ("agent.*", "c", "no subject that can be published to: 'agent.\\*'"),
        ("agent delegate", "c", "no subject"),
        (TOPIC, "", "correlation_id is empty"),
        (TOPIC, 7, "correlation_id must be text, not int"),
        (TOPIC, "x" * 257, "longer than 256"),
        (TOPIC, "a\nb", "control characters"),
        ("taskflow.reply.kate", "a.b", "the last part of the subject, without dots"),
        ("taskflow.reply.kate", "a b", "not 'a b'"),
    ],
)
async def test_a_reply_that_could_never_be_used_is_refused_and_not_sent(
    taskflow: TaskflowWorld, topic: Any, correlation_id: Any, said: str
) -> None:
    kate = await taskflow.client("kate")
    with pytest.raises(InvalidRequest, match=said):
        await kate.reply(topic, correlation_id, {})
    with pytest.raises(InvalidRequest, match="event_id has control"):
        await kate.reply(TOPIC, "c", {}, event_id="a\nb")


@pytest.mark.parametrize(
    "value, path",
    [
        (object(), "/patch/a"),
        ({"b": [1, {2, 3}, object()]}, "/patch/a/b/2"),
        ({(1, 2): 3}, "/patch/a"),
        ("\ud800", "/patch/a"),
    ],
)
async def test_what_json_does_not_have_is_refused_by_its_place(taskflow: TaskflowWorld, value: Any, path: str) -> None:
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="hold a value")
    with pytest.raises(InvalidRequest, match="JSON") as refused:
        await flow.advance({"a": value})
    assert refused.value.details["path"] == path
    for topic in (TOPIC, "taskflow.reply.kate"):
        with pytest.raises(InvalidRequest, match="JSON") as refused:
            await kate.reply(topic, "c", {"a": value})
        assert refused.value.details["path"] == path.replace("patch", "payload")


async def test_a_reply_beyond_the_limit_is_refused_at_once_for_it_would_become_a_dead_letter(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    with pytest.raises(TooLarge):
        await kate.reply(TOPIC, "c", "x" * 262_144)


async def test_a_reply_that_no_stream_takes_says_so(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate", patience=2.0)
    replying = asyncio.ensure_future(kate.reply("no.such.topic", "c", {}))
    await taskflow.clock.advance("3s")
    with pytest.raises(Unavailable, match=r"no\.such\.topic was not stored within 2 s \(no stream takes no\.such\.topic\); repeat it"):
        await replying


async def test_a_closed_connection_is_told_as_such(taskflow: TaskflowWorld) -> None:
    transport = taskflow.transport()
    kate = FlowClient(transport, agent="kate")
    await kate.open()
    await transport.close()
    with pytest.raises(Unavailable, match=f"{TOPIC} was not stored: the connection is closed"):
        await kate.reply(TOPIC, "c", {})
    with pytest.raises(NoOutcome, match="the connection is closed"):
        await kate.start(controller_id="kate/x", goal="be too late")


@pytest.mark.parametrize("bare", [10, 1.5, None])
def test_a_bare_number_is_no_duration(bare: Any) -> None:
    with pytest.raises(InvalidRequest, match='a duration is text like "15m"'):
        timer(bare)
    if bare is not None:
        with pytest.raises(InvalidRequest, match="or a timedelta, not 1"):
            manual(timeout=bare)
    assert manual(timeout=timedelta(seconds=10))["timeout"] == manual(timeout="10s")["timeout"]


async def test_a_door_that_is_none_is_refused(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    with pytest.raises(InvalidRequest, match="door is 'cmd'"):
        await kate.start(controller_id="kate/x", goal="go", door="nats")  # type: ignore[arg-type]


async def test_an_arguments_older_name_still_works_and_says_the_new_one(taskflow: TaskflowWorld) -> None:
    kate: Any = await taskflow.client("kate")
    with pytest.warns(DeprecationWarning, match="controller_id"), pytest.warns(DeprecationWarning, match="current_step"):
        flow = await kate.start(controller="kate/x", goal="go", step="one")
    assert (flow.snapshot.controller_id, flow.current_step) == ("kate/x", "one")
    with pytest.warns(DeprecationWarning, match="current_step"):
        assert (await flow.advance(step="two")).current_step == "two"
    with pytest.raises(TypeError, match="current_step twice"):
        await flow.advance(step="three", current_step="four")


async def test_a_kind_of_events_that_there_is_not_is_refused(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    agent = Agent(kate, name="loop")
    with pytest.raises(InvalidRequest, match="no events of kind 'resume'; kinds are created, started"):
        agent.on("resume")
    with pytest.raises(InvalidRequest, match="no events of kind 'finish'"):
        await anext(kate.events(kinds={"finish"}))
    await (await kate.start(controller_id="kate/x", goal="end")).finish()
    assert (await anext(kate.events(kinds="finished"))).kind == "finished"


async def test_a_handler_that_would_never_be_called_is_refused(taskflow: TaskflowWorld) -> None:
    agent = Agent(await taskflow.client("kate"), name="loop")

    async def handle(flow: Flow, event: Event) -> None: ...

    with pytest.raises(TypeError, match=r"write @agent\.on\(\) with parentheses"):
        agent.on(handle)  # type: ignore[arg-type]


def plain(*_: object) -> None: ...


async def takes_nothing() -> None: ...


async def takes_more(one: object, two: object, three: object) -> None: ...


async def takes_all(*_: object) -> None: ...


@pytest.mark.parametrize("handler, said", [(plain, "async"), (takes_nothing, "does not take"), (takes_more, "does not take"), (7, "async")])
async def test_a_handler_that_could_only_fail_is_refused_where_it_is_named(taskflow: TaskflowWorld, handler: Any, said: str) -> None:
    kate = await taskflow.client("kate")
    with pytest.raises(TypeError, match=said) as refused:
        Agent(kate, name="loop").on("started")(handler)
    assert "async def handler(flow, event)" in str(refused.value) or "(flow, event)" in str(refused.value)
    with pytest.raises(TypeError, match=said) as refused:
        serve_delegate("svc.add", handler, on=kate)
    assert "svc.add" in str(refused.value)


async def test_a_handler_may_be_whatever_is_called_and_awaited(taskflow: TaskflowWorld) -> None:
    class Called:
        async def __call__(self, flow: Flow, event: Event) -> None: ...

        async def method(self, flow: Flow, event: Event) -> None: ...

    @functools.wraps(takes_all)
    def wrapped(*given: object) -> Any:
        return takes_all(*given)

    agent = Agent(await taskflow.client("kate"), name="loop")
    for handler in (Called(), Called().method, functools.partial(takes_more, 1), takes_all, wrapped):
        agent.on("started")(handler)


async def test_a_handler_that_fails_again_and_again_is_told_with_one_traceback(
    taskflow: TaskflowWorld, caplog: pytest.LogCaptureFixture
) -> None:
    kate = await taskflow.client("kate")
    agent = Agent(kate, name="loop")

    @agent.on("created")
    async def handle(flow: Flow, event: Event) -> None:
        raise ValueError("always")

    taskflow.run(agent.run())
    await kate.start(controller_id="kate/x", goal="be handled")
    await taskflow.clock.advance("1h")
    told = [record for record in caplog.records if record.name == "nats_taskflow.client.agent"]
    assert len(told) > 10
    assert all("always" in record.getMessage() for record in told)
    assert [bool(record.exc_info) for record in told] == [True] + [False] * (len(told) - 1)


async def test_a_delegate_that_cannot_work_is_refused_before_it_serves(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")

    async def answer(asked: DelegateCall) -> None: ...

    for subject in ("", "svc bad", "svc..x"):
        with pytest.raises(InvalidRequest, match="subject"):
            serve_delegate(subject, answer, on=kate)
    with pytest.raises(InvalidRequest, match="cancel_on"):
        serve_delegate("svc.x", answer, on=kate, cancel_on="svc..x")


async def cancelled_by_what_it_awaits() -> None:
    """As where a handler awaits a task that somebody else cancels."""
    gone = asyncio.get_running_loop().create_future()
    gone.cancel()
    await gone


async def test_a_handler_whose_own_task_is_cancelled_is_called_again(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    agent, calls = Agent(kate, name="loop"), list[str]()

    @agent.on("started")
    async def handle(flow: Flow, event: Event) -> None:
        calls.append(event.id)
        if len(calls) == 1:
            await cancelled_by_what_it_awaits()
        await flow.finish()

    taskflow.run(agent.run())
    flow = await kate.start(controller_id="kate/x", goal="be handled")
    await taskflow.settled()
    await taskflow.clock.advance(timedelta(minutes=5))
    await taskflow.assert_finished(flow)
    assert len(calls) == 2


async def test_a_delegate_whose_own_task_is_cancelled_answers_that_it_failed(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")

    async def answer(asked: DelegateCall) -> None:
        await cancelled_by_what_it_awaits()

    async with serve_delegate("svc.add", answer, on=kate):
        flow = await kate.start(controller_id="kate/x", goal="add")
        await flow.delegate("svc.add", {}, timeout="1h")
        error = {"code": "500", "message": "the delegate failed: CancelledError"}
        await taskflow.assert_running(flow, state={"resume_event": {"error": error}})


@pytest.mark.parametrize(
    "answer, said",
    [
        ("x" * 262_144, "the flow cannot take the answer: the body has 262146 bytes; the limit is 262144"),
        (b"x" * 262_145, "the flow cannot take the answer: the body has 262145 bytes; the limit is 262144"),
        ("x" * 1_048_570, "the answer has 1048572 bytes; the broker takes 1048576"),
        (json.loads("[" * 33 + "]" * 33), "the flow cannot take the answer: the JSON nests deeper than 32 levels"),
    ],
)
async def test_an_answer_that_the_flow_could_not_take_reaches_it_as_an_error(taskflow: TaskflowWorld, answer: Any, said: str) -> None:
    kate = await taskflow.client("kate")

    async def give(asked: DelegateCall) -> Any:
        return answer

    async with serve_delegate("svc.big", give, on=kate):
        flow = await kate.start(controller_id="kate/x", goal="ask for much")
        await flow.delegate("svc.big", {})
        await taskflow.assert_running(flow, state={"resume_event": {"error": {"code": "413", "message": said}}})
        if "the flow" in said:  # anybody else may have it
            assert len((await kate.transport.request("svc.big", b"", timeout=5)).body) > 60


async def test_a_bare_answer_that_is_no_json_still_reaches_the_flow(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")

    async def say(asked: DelegateCall) -> bytes:
        return b"hello, it is \xc3\xa9t\xc3\xa9"

    async with serve_delegate("svc.say", say, on=kate):
        flow = await kate.start(controller_id="kate/x", goal="listen")
        await flow.delegate("svc.say", {})
        await taskflow.assert_running(flow, state={"resume_event": {"text": "hello, it is été"}})


async def test_a_verb_that_there_is_not_is_a_refusal(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    with pytest.raises(UnsupportedVerb, match="there is no verb 'explode': verbs are start, run, "):
        await kate.send("explode", {})


async def test_where_nats_is_has_to_be_a_place(taskflow: TaskflowWorld) -> None:
    with pytest.raises(TypeError, match="a URL, a context's name, a nats-py client or a Transport, not bytes"):
        async with FlowClient.connect(b"nats://127.0.0.1", agent="kate"):  # type: ignore[arg-type]
            raise AssertionError("unreachable")


async def test_a_wait_that_is_given_up_says_what_was_waited_for(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="wait long")
    await flow.wait_manual("Ann: go on?")
    waiting = asyncio.ensure_future(flow.resumed("1m"))
    await taskflow.clock.advance("2m")
    with pytest.raises(TimeoutError, match=f"flow {flow.id} was not resumed within 60 s: it waits on"):
        await waiting


async def test_an_outcome_that_does_not_come_names_the_id_to_repeat(taskflow: TaskflowWorld) -> None:
    kate = await taskflow.client("kate", patience=2.0)
    await taskflow.chaos.kill()
    starting = asyncio.ensure_future(kate.start(controller_id="kate/x", goal="go", command_id="c-1"))
    await taskflow.clock.advance("3s")
    with pytest.raises(NoOutcome, match="command_id='c-1'") as none:
        await starting
    assert (none.value.command_id, none.value.accepted) == ("c-1", True)
    await taskflow.chaos.restart()


async def test_what_anybody_can_send_to_agents_and_delegates_is_a_line_a_minute(
    taskflow: TaskflowWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher says where the broker's acknowledgement goes: on another agent's events, or to a delegate's notices."""
    kate, handled = await taskflow.client("kate"), list[str]()
    agent = Agent(kate, name="loop")

    @agent.on("started")
    async def handle(flow: Flow, event: Event) -> None:
        handled.append(event.flow_id)

    taskflow.run(agent.run())
    mallory = taskflow.transport()

    async def answer(asked: DelegateCall) -> None: ...

    async with serve_delegate("svc.add", answer, on=taskflow.transport(), cancel_on="svc.cancel"):
        for lines in (1, 2):
            for _ in range(300):
                await mallory.publish("taskflow.evt.kate.x.started", b'{"stream":"TASKFLOW_IN","seq":1}', msg_id="", timeout=1)
                await mallory.tell("svc.cancel", b"garbage")
            flow = await kate.start(controller_id="kate/x", goal="be handled")
            await taskflow.settled()
            assert handled.pop() == flow.id
            for name in ("agent", "delegate"):
                told = [record.getMessage() for record in caplog.records if record.name == f"nats_taskflow.client.{name}"]
                assert len(told) == lines, told[:3]
                assert lines == 1 or "300" in told[-1]
            await taskflow.clock.advance("1m")
