"""A broker that carries little: what could not be sent does not come into being, and what has happened is never told as an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e import checks
from tests.e2e.commands import command
from tests.e2e.stage import EVENTS, TOPIC, Agent, Json, Stage, in_order
from tests.eventually import eventually
from tests.faults.readiness import readiness, ready
from tests.ports import kept_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FITS, OVER = 45_000, 65_200


@asynccontextmanager
async def broker(folder: Path, max_payload: str) -> AsyncIterator[Stage]:
    """A stage whose server carries messages of at most this size; no worker runs yet."""
    server = EmbeddedServer(folder / "nats", kept_port(), extra_config=f"max_payload: {max_payload}")
    stage = Stage(folder, server=server)
    await server.start()
    try:
        yield stage
    finally:
        await stage.close()


async def all_out(stage: Stage, kate: Agent) -> None:
    """Return once everything committed is in the event stream."""

    async def none_left() -> bool:
        return not any((await command(stage, "stats", "-o", "json")).json["unpublished"].values())

    await eventually(none_left)


async def test_ninety_flows_with_patches_that_nearly_fill_a_message_stop_nobodys_events(tmp_path: Path) -> None:
    """CONTRACT 1. Each patch fits into the request, and its event would not."""
    async with broker(tmp_path, "64KB") as stage:
        await stage.start()
        kate = await stage.agent()
        flows = await in_order([partial(kate.start, goal=f"flow {n}") for n in range(90)])

        async def advance(flow_id: str, size: int) -> Json:
            return await kate.api("advance", {"flow_id": flow_id, "patch": {"text": "x" * size}})

        refused = await in_order([partial(advance, flow_id, OVER) for flow_id in flows], at_once=10)
        assert {answer["error"]["code"] for answer in refused} == {"too_large"}
        assert {(await kate.flow(flow_id))["revision"] for flow_id in flows} == {1}, "refused, and nothing moved"
        applied = await in_order([partial(advance, flow_id, FITS) for flow_id in flows], at_once=10)
        assert {answer["ok"] for answer in applied} == {True}
        assert await kate.start()
        await all_out(stage, kate)
        assert await checks.violations(stage, kate) == []


async def test_what_has_happened_is_answered_without_its_state_where_that_would_not_fit(tmp_path: Path) -> None:
    async with broker(tmp_path, "64KB") as stage:
        await stage.start()
        kate = await stage.agent()
        flow_id = await kate.start(goal="\x01" * 4000)
        answer = await kate.api("advance", {"flow_id": flow_id, "patch": {"text": "x" * FITS}}, "big")
        assert (answer["ok"], answer["outcome"], answer["state_omitted"]) == (True, "applied", True)
        assert "state" not in answer["flow"]
        assert answer["flow"]["revision"] == 2
        assert (await kate.api("status", {"flow_id": flow_id}))["state_omitted"]
        assert (await kate.outcome("big"))["ok"]
        listed = await kate.api("list_mine")
        assert (listed["count"], listed["state_omitted"]) == (1, True)
        waiting = await kate.api("wait", {"flow_id": flow_id, "wait_condition": {"kind": "manual", "prompt": "?"}})
        assert waiting["ok"]
        assert await checks.violations(stage, kate) == []


async def test_a_reply_that_could_not_be_sent_on_is_a_dead_letter_and_its_wait_goes_on(tmp_path: Path) -> None:
    """A number may be longer in the event than in the reply: 1e15 is written with sixteen digits."""
    async with broker(tmp_path, "64KB") as stage:
        await stage.start()
        kate = await stage.agent()
        waiting = await kate.parked("c")
        grown = b'{"correlation_id":"c","payload":[' + b",".join([b"1e15"] * 6000) + b"]}"
        early = grown.replace(b'"c"', b'"early"')
        for body in (grown, early):
            await kate.publish(TOPIC, body)
        letters = await stage.dead(kate, 2)
        assert {letter.headers["Taskflow-Reason"] for letter in letters} == {"too_large"}
        await kate.reply(TOPIC, "c", {"n": 1})
        assert (await kate.until(waiting, "running"))["state"]["resume_event"] == {"n": 1}
        assert await checks.violations(stage, kate) == []


async def test_lowered_limits_are_said_once_at_the_start_and_in_the_details_of_readyz(tmp_path: Path) -> None:
    async with broker(tmp_path, "64KB") as stage:
        await stage.start()
        said = [line for line in stage.logs()[-1].read_text().splitlines() if "65,536 bytes" in line]
        assert len(said) == 1
        assert '"level":"warning"' in said[0]
        status, text = await readiness(stage)
        assert (status, "65,536 bytes" in text) == (200, True)


async def test_a_broker_that_carries_too_little_is_refused_and_one_that_carries_enough_is_not_remarked_on(tmp_path: Path) -> None:
    for name in ("small", "whole"):
        (tmp_path / name).mkdir()
    async with broker(tmp_path / "small", "60KB") as stage:
        ended = await stage.refused()
        assert (ended.code, "max_payload" in ended.stderr) == (78, True), ended.stderr
    async with broker(tmp_path / "whole", "512KB") as stage:
        await stage.start()
        assert "the broker carries" not in stage.logs()[-1].read_text()


async def test_events_that_the_stream_does_not_take_any_more_hold_back_their_flows_alone(tmp_path: Path) -> None:
    """RELIABILITY 9: one stuck event never holds up another flow's."""
    async with broker(tmp_path, "1MB") as stage:
        await stage.start()
        kate = await stage.agent()
        flows = await in_order([partial(kate.start, goal=f"flow {n}") for n in range(90)])
        await all_out(stage, kate)
        config = (await kate.js.stream_info(EVENTS)).config
        await kate.js.update_stream(config.evolve(max_msg_size=60_000))
        for flow_id in flows:
            assert (await kate.api("advance", {"flow_id": flow_id, "patch": {"text": "x" * 70_000}}))["ok"]
        other = await kate.start()

        async def is_told() -> bool:
            return len(await stage.events(kate, other)) == 2

        await eventually(is_told)

        async def are_set_aside() -> bool:
            status, text = await readiness(stage)
            return status == 503 and "90 flows" in text

        await eventually(are_set_aside)
        await kate.js.update_stream(config)
        await ready(stage, within=40)
        await all_out(stage, kate)
        assert await checks.violations(stage, kate, clean_logs=False) == []
