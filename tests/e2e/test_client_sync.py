"""The synchronous face: scripts without asyncio, in a thread of their own here since the stage lives in the test's loop."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from nats_taskflow.client import AlreadyTerminal, Flow, FlowClient, FlowClientSync, FlowSync, Lost, flows_sync
from tests.e2e.stage import TOPIC, Agent, World

pytestmark = pytest.mark.e2e


def script(url: str, agent: str) -> str:
    """Do what an agent does."""
    with flows_sync(url, agent=agent) as flows:
        flow = flows.start(controller_id="kate/script", goal="be simple", state={"n": 0})
        assert flow.advance({"n": 1}, current_step="two").state == {"n": 1}
        assert (flow.status, flow.current_step, flow.revision) == ("running", "two", 2)
        correlation = flow.wait_reply(TOPIC)
        flows.reply(TOPIC, correlation, 42)
        assert flow.resumed("20s").payload == 42
        assert flow.observe("run-1", "look", "succeeded", result=1).status == "succeeded"
        flow.finish()
        with pytest.raises(AlreadyTerminal):
            flow.advance({"n": 2})
        kinds = ["created", "started", "state_updated", "waiting", "resumed", "step_observed", "finished"]
        assert [event.kind for event in flow.events()] == kinds
        assert [entry.kind for entry in flow.history()] == kinds
        assert [event.kind for event in islice(flows.events(controller="kate/*"), 3)] == kinds[:3]
        assert [one.id for one in flows.list(status="finished")] == [flow.id]
        assert flows.get(flow.id).state["n"] == 1
        assert [step.run_id for step in flow.steps()] == ["run-1"]
        return flow.id


async def test_a_script_does_everything_without_asyncio(world: World, agent: Agent) -> None:
    assert await asyncio.to_thread(script, world.url, agent.name)


async def test_a_client_that_is_closed_says_so_whatever_is_left_of_it(world: World, agent: Agent) -> None:
    def late() -> None:
        with flows_sync(world.url, agent=agent.name) as flows:
            flow = flows.start(controller_id="kate/script", goal="be left over")
            events = flow.events()
            assert next(events).kind == "created"
        for call in (flow.refresh, flow.finish, lambda: next(events), lambda: next(flows.list())):
            with pytest.raises(Lost, match="closed"):
                call()

    await asyncio.to_thread(late)


async def test_an_error_at_the_beginning_is_raised_and_leaves_no_thread() -> None:
    import threading

    def attempt() -> None:
        with pytest.raises(Lost), flows_sync("nats://127.0.0.1:1", agent="kate", connect_timeout=0.3):
            pass

    await asyncio.to_thread(attempt)
    assert "taskflow-client" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("waiting,patient", [(Flow, FlowSync), (FlowClient, FlowClientSync)])
def test_it_has_every_method_of_the_asynchronous_client(waiting: type, patient: type) -> None:
    internal = {"open", "close", "send", "in_session"}
    wanted = {name for name in vars(waiting) if not name.startswith("_")} - internal
    assert wanted <= set(dir(patient)), wanted - set(dir(patient))
