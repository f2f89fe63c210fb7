"""Steering many flows at once, and staying to watch: what a filter finds is counted, asked about, done at a rate, and told."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime

import pytest

from tests.e2e.commands import asked, command
from tests.e2e.stage import TOPIC, Agent, Stage, World
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

BY = ("--operator", "ann", "--reason", "the delegate is gone")


async def statuses(stage: Stage) -> dict[str, str]:
    return {flow["id"]: flow["status"] for flow in (await asked(stage, "flow", "list")).items}


async def test_a_filter_is_tried_dry_asked_about_and_done_to_those_that_can_be_steered_so(stage: Stage, kate: Agent) -> None:
    waiting = [await kate.parked(f"c-{n}") for n in range(3)]
    elsewhere = await kate.parked("c-9", topic="taskflow.reply.kate")
    running = await kate.start()
    dry = await asked(stage, "flow", "cancel", "--topic", TOPIC, "--dry-run", *BY)
    assert sorted(item["flow"]["id"] for item in dry.items) == sorted(waiting)
    assert set((await statuses(stage)).values()) == {"waiting", "running"}, "a dry run has done something"

    refused = await command(stage, "flow", "cancel", "--topic", TOPIC, *BY, code=64)
    assert "3 flows" in refused.err
    assert "--yes" in refused.err
    assert set((await statuses(stage)).values()) == {"waiting", "running"}, "nobody was asked"

    done = await asked(stage, "flow", "cancel", "--topic", TOPIC, "--yes", "--rate", "500", *BY)
    assert sorted(item["flow"]["id"] for item in done.items) == sorted(waiting)
    assert (await kate.history(waiting[0]))[-1]["payload"]["reason"] == "the delegate is gone"
    now = await statuses(stage)
    assert (now[elsewhere], now[running]) == ("waiting", "running")

    # Those that have ended, and those that do not wait, are not meant, although the filter names their controller.
    resumed = await asked(stage, "flow", "resume", "--controller", "kate/test", "-y", *BY)
    assert [item["flow"]["id"] for item in resumed.items] == [elsewhere]
    failed = await asked(stage, "flow", "fail", "--owner", "agent:kate:session:main", "-y", *BY)
    assert sorted(item["flow"]["id"] for item in failed.items) == sorted([elsewhere, running])
    assert (await asked(stage, "flow", "fail", "--status", "waiting", *BY)).items == []


async def test_names_and_a_filter_exclude_each_other_and_one_is_needed(world: World, agent: Agent) -> None:
    flow_id = await agent.start()
    assert "not both" in (await command(world, "flow", "cancel", flow_id, "--status", "running", *BY, code=64)).err
    assert "which flows" in (await command(world, "flow", "cancel", *BY, code=64)).err
    about_one = ("--status", "running", "-y", "--expected-revision", "1")
    assert "about one flow" in (await command(world, "flow", "cancel", *about_one, *BY, code=64)).err
    assert (await agent.flow(flow_id))["status"] == "running"


async def test_a_rate_is_kept(stage: Stage, kate: Agent) -> None:
    """Five flows at ten a second take four tenths of a second at least; how much longer, nobody promises."""
    ids = [await kate.parked(f"r-{n}") for n in range(5)]
    await command(stage, "flow", "cancel", "--status", "waiting", "-y", "--rate", "10", *BY)
    at = [(await kate.history(flow_id))[-1]["at"] for flow_id in reversed(ids)]
    assert abs((datetime.fromisoformat(at[-1]) - datetime.fromisoformat(at[0])).total_seconds()) >= 0.39


async def test_a_flow_is_followed_until_it_ends(world: World, agent: Agent) -> None:
    flow_id = await agent.parked(agent.name)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_taskflow", "flow", "show", flow_id[-8:], "--follow", "-o", "jsonl"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=world.environment(),
    )
    try:
        async with asyncio.timeout(60):
            assert process.stdout is not None
            first = json.loads(await process.stdout.readline())
            assert (first["id"], first["status"]) == (flow_id, "waiting")
            await agent.reply(TOPIC, agent.name, {"ok": True})
            await agent.until(flow_id, "running")
            assert (await agent.api("finish", {"flow_id": flow_id}))["ok"]
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err
    assert [json.loads(line)["data"]["kind"] for line in out.splitlines()] == ["resumed", "finished"]
    assert "needs a worker" in (await command(world, "flow", "show", flow_id, "--follow", "--db", str(world.path), code=64)).err


async def test_a_list_is_watched(stage: Stage, kate: Agent) -> None:
    await kate.parked("w-1")
    looks = await command(stage, "flow", "list", "--watch", "0.2", "--count", "3", "-o", "jsonl")
    assert len(looks.out.splitlines()) == 3
    assert len((await command(stage, "waits", "--watch", "0.2", "--count", "2", "-o", "jsonl")).out.splitlines()) == 2
    # Without a number it is every two seconds: one look is enough to see that it is understood.
    assert len((await command(stage, "waits", "--watch", "--count", "1", "-o", "jsonl")).out.splitlines()) == 1


async def test_a_reply_names_its_flow_by_the_end_of_its_id(world: World, agent: Agent) -> None:
    flow_id = await agent.parked(agent.name)
    await command(world, "reply", TOPIC, agent.name, "{}", "--flow", flow_id[-8:])
    await eventually(lambda: agent.until(flow_id, "running"), within=20.0)
