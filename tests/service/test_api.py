"""What answers an agent knows no transport: any door can hand a request in and take the answer out (CONTRACT 2, 3)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nats_taskflow.doors.admin.queries import Queries
from nats_taskflow.doors.api import Answer, Api
from nats_taskflow.engine.id_mint import IdMint
from nats_taskflow.errors import Forbidden, NotFound
from nats_taskflow.wire.subjects import Subjects
from tests.running import Running, running


def api_of(run: Running, counted: list[tuple[str, str]]) -> Api:
    subjects = Subjects("taskflow")
    queries = Queries(run.store, subjects, run.clock, version="1")
    return Api(run.engine, subjects, IdMint(), queries.explain_to_agent, watch=lambda *outcome: counted.append(outcome))


async def ask(api: Api, verb: str, agent: str = "kate", headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    async def turn() -> None:
        """Have it always."""

    return await api.answer(agent, verb, msgspec.json.encode(fields), headers or {}, turn)


async def test_commands_and_queries_are_answered_without_any_transport() -> None:
    counted: list[tuple[str, str]] = []
    async with running() as run:
        api = api_of(run, counted)
        started = await ask(api, "start", controller_id="kate/inbox", goal="g", headers={"Nats-Msg-Id": "c-1"})
        flow = msgspec.json.decode(started.body)["flow"]
        assert msgspec.json.decode((await ask(api, "status", flow_id=flow["id"])).body)["flow"] == flow
        assert await ask(api, "start", controller_id="kate/inbox", goal="g", headers={"Nats-Msg-Id": "c-1"}) == started, "a repeat"
        assert (await ask(api, "outcome", command_id="c-1")).body == started.body
        assert counted == [("start", "applied"), ("start", "duplicate")]


async def test_what_is_refused_before_it_is_decided_is_raised_and_what_is_decided_comes_with_its_error() -> None:
    async with running() as run:
        api = api_of(run, [])
        with pytest.raises(NotFound):
            await ask(api, "status", flow_id="01998f00-0000-7000-8000-000000000000")
        flow_id = msgspec.json.decode((await ask(api, "start", controller_id="k", goal="g")).body)["flow"]["id"]
        with pytest.raises(Forbidden):
            await ask(api, "status", "ann", flow_id=flow_id)
        refused = await ask(api, "finish", "ann", flow_id=flow_id)
        assert isinstance(refused.error, Forbidden)
        assert msgspec.json.decode(refused.body)["error"]["code"] == "forbidden"
