"""Delegates that know nothing of this project: plain responders and micro services, also when worker or broker is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats import micro
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.micro.request import Request

from tests.e2e import checks
from tests.e2e.stage import Agent, Stage, World
from tests.eventually import eventually

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def delegate(world: World) -> AsyncIterator[Client]:
    """Connect as a delegate would: a NATS client of its own, that comes back by itself."""

    async def quiet(_: Exception) -> None:
        """Say nothing of the outages the test makes."""

    client = await nats.connect(world.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=quiet)
    try:
        yield client
    finally:
        await client.close()


async def delegated(agent: Agent, **more: Any) -> str:
    """Start a flow and delegate; returns its id."""
    flow_id = await agent.start()
    answer = await agent.api("delegate", {"flow_id": flow_id, "to": "svc.add", "payload": {"a": 1, "b": 2}, "timeout": "10m", **more})
    assert answer["ok"], answer
    assert answer["flow"]["status"] == "waiting"
    return flow_id


async def resumed(agent: Agent, flow_id: str) -> Any:
    """Wait for the one resume; returns its payload. The worker may be on its way back meanwhile."""

    async def there() -> bool:
        """Tell whether the flow runs again, as far as there is somebody to ask."""
        try:
            return bool((await agent.flow(flow_id))["status"] == "running")
        except NatsError:
            return False

    await eventually(there, within=20.0)
    assert (await agent.kinds(flow_id)).count("resumed") == 1
    return (await agent.flow(flow_id))["state"]["resume_event"]


async def test_a_plain_responder_is_a_delegate(world: World, agent: Agent) -> None:
    async def add(request: Msg) -> None:
        asked = json.loads(request.data)
        await request.respond(json.dumps({"sum": asked["a"] + asked["b"]}).encode())

    async with delegate(world) as client:
        await client.subscribe("svc.add", cb=add)
        await client.flush()
        flow_id = await delegated(agent)
        assert await resumed(agent, flow_id) == {"sum": 3}


async def test_an_unchanged_micro_service_is_a_delegate_and_its_error_an_error_payload(world: World, agent: Agent) -> None:
    async def add(request: Request) -> None:
        asked = json.loads(request.data)
        if asked["b"] is None:
            await request.respond_error("422", "b is missing")
            return
        await request.respond(json.dumps({"sum": asked["a"] + asked["b"]}).encode())

    async with delegate(world) as client:
        service = await micro.add_service(client, name="adder", version="1.0.0")
        await service.add_endpoint(name="add", subject="svc.add", handler=add)
        await client.flush()
        assert await resumed(agent, await delegated(agent)) == {"sum": 3}
        failed = await delegated(agent, payload={"a": 1, "b": None})
        assert await resumed(agent, failed) == {"error": {"code": "422", "message": "b is missing"}}
        await service.stop()


async def test_a_delegate_that_comes_later_is_still_asked(world: World, agent: Agent) -> None:
    async def add(request: Msg) -> None:
        await request.respond(b'"here"')

    flow_id = await delegated(agent)

    def not_reached() -> bool:
        lines = [line for log in world.logs() for line in log.read_text(encoding="utf-8").splitlines()]
        return any("delegate_not_reached" in line and flow_id in line for line in lines)

    await eventually(not_reached)
    async with delegate(world) as client:
        await client.subscribe("svc.add", cb=add)
        await client.flush()
        assert await resumed(agent, flow_id) == "here"


async def test_the_answer_resumes_the_flow_though_the_worker_was_killed_between_request_and_response(stage: Stage, kate: Agent) -> None:
    async with delegate(stage) as client:
        requests = await client.subscribe("svc.add")
        await client.flush()
        flow_id = await delegated(kate)
        request = await requests.next_msg(timeout=10)
        await stage.kill()
        await request.respond(b'{"sum": 3}')
        await client.flush()
        await stage.start()
        assert await resumed(kate, flow_id) == {"sum": 3}
        assert await checks.violations(stage, kate, accepted=[]) == []


async def test_the_answer_resumes_the_flow_though_the_broker_was_killed_between_request_and_response(stage: Stage, kate: Agent) -> None:
    async with delegate(stage) as client:
        requests = await client.subscribe("svc.add")
        await client.flush()
        flow_id = await delegated(kate)
        request = await requests.next_msg(timeout=10)
        await stage.server.restart(kill=True)
        await eventually(lambda: client.is_connected, within=10.0)
        # An ordinary responder's answer is lost with its connection; this one is given once it is back.
        await kate.insist(request.reply, b'{"sum": 3}', {"Nats-Msg-Id": "answer-1"})
        assert await resumed(kate, flow_id) == {"sum": 3}
        assert await checks.violations(stage, kate, accepted=[]) == []


async def test_a_request_that_was_committed_is_sent_by_the_next_worker(stage: Stage, kate: Agent) -> None:
    flow_id = await delegated(kate)
    await stage.kill()
    async with delegate(stage) as client:
        requests = await client.subscribe("svc.add")
        await client.flush()
        await stage.start()
        request = await requests.next_msg(timeout=10)
        assert json.loads(request.data) == {"a": 1, "b": 2}
        await request.respond(b"3")
        assert await resumed(kate, flow_id) == 3


async def test_a_cancelled_flow_sends_its_delegate_a_notice(world: World, agent: Agent) -> None:
    async with delegate(world) as client:
        requests, notices = await client.subscribe("svc.add"), await client.subscribe("svc.cancel")
        await client.flush()
        flow_id = await delegated(agent, cancel_to="svc.cancel")
        request = await requests.next_msg(timeout=10)
        traceparent = f"00-{'4b' * 16}-{'a1' * 8}-01"
        body = json.dumps({"flow_id": flow_id, "reason": "no longer needed"}).encode()
        await client.request(f"taskflow.api.{agent.name}.cancel", body, timeout=10, headers={"traceparent": traceparent})
        notice = await notices.next_msg(timeout=10)
        assert json.loads(notice.data)["reason"] == "no longer needed"
        assert request.headers is not None
        assert notice.headers is not None
        assert notice.headers["Correlation-Id"] == request.headers["Correlation-Id"]
        assert notice.headers["traceparent"] == traceparent


async def test_a_hundred_delegations_at_once_are_all_answered(world: World, agent: Agent) -> None:
    async def echo(request: Msg) -> None:
        await request.respond(request.data)

    async with delegate(world) as client:
        await client.subscribe("svc.add", cb=echo)
        await client.flush()
        flows = await asyncio.gather(*[delegated(agent, payload={"n": number}) for number in range(100)])
        answers = [(await agent.until(flow_id, "running", within=20.0))["state"]["resume_event"] for flow_id in flows]
        assert answers == [{"n": number} for number in range(100)]
