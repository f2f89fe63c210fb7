"""What an agent can ask with its own key (CONTRACT 2): its flows by many filters, one run, the end of a journal, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.service.line import TOPIC, Line


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    made = Line(tmp_path / "flows.db")
    await made.start()
    yield made
    await made.stop()


async def listed(line: Line, **filters: Any) -> list[str]:
    """Return the goals of the flows that are listed, over all pages."""
    goals: list[str] = []
    while True:
        answer, _ = await line.ask("list_mine", **filters)
        assert answer["ok"], answer
        goals += [flow["goal"] for flow in answer["flows"]]
        if answer["next_cursor"] is None:
            return goals
        filters["cursor"] = answer["next_cursor"]


async def started(line: Line, goal: str, controller: str = "kate/inbox", **more: Any) -> str:
    flow_id: str = (await line.done("start", controller_id=controller, goal=goal, **more))["flow"]["id"]
    return flow_id


async def waits_for(line: Line, flow_id: str, correlation_id: str) -> None:
    wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": correlation_id}
    assert (await line.done("wait", flow_id=flow_id, wait_condition=wait))["ok"]


@pytest.mark.parametrize(
    "filters, goals",
    [
        ({}, ["third", "Second Thing", "first"]),
        ({"status": "waiting"}, ["third", "first"]),
        ({"controller": "kate/*"}, ["Second Thing", "first"]),
        ({"controller": "*report*"}, ["third"]),
        ({"controller": "kate/inbox"}, ["first"]),
        ({"controller": "kate/inbo?"}, []),
        ({"controller": "kate/[ab]*"}, []),
        ({"step": "ask"}, ["third"]),
        ({"topic": TOPIC}, ["third", "first"]),
        ({"topic": TOPIC, "correlation_id": "c-1"}, ["first"]),
        ({"correlation_id": "c-3"}, ["third"]),
        ({"goal": "second"}, ["Second Thing"]),
        ({"goal": "100%"}, []),
        ({"since": "30m"}, ["third"]),
        ({"until": "30m"}, ["Second Thing", "first"]),
        ({"since": "2026-11-21T10:00:00Z", "until": "2026-11-21T10:30:00Z"}, ["Second Thing", "first"]),
        ({"controller": "kate/*", "status": "waiting", "limit": 1}, ["first"]),
    ],
)
async def test_an_agent_finds_its_flows_by_what_it_knows_of_them(line: Line, filters: dict[str, Any], goals: list[str]) -> None:
    await waits_for(line, await started(line, "first"), "c-1")
    await started(line, "Second Thing", "kate/other[1]")
    line.advance(hours=1)
    await waits_for(line, await started(line, "third", "weekly-report", current_step="ask"), "c-3")
    await started(line, "not mine", session_id="other")
    assert await listed(line, **filters) == goals


@pytest.mark.parametrize("field", ["since", "until"])
async def test_a_time_that_is_none_is_refused_by_its_name(line: Line, field: str) -> None:
    answer, _ = await line.ask("list_mine", **{field: "soon"})
    assert (answer["error"]["code"], answer["error"]["details"]["path"]) == ("invalid_request", f"/{field}")


async def test_an_agent_sees_one_run_of_its_flow(line: Line) -> None:
    flow_id = await line.started()
    assert (await line.done("observe", flow_id=flow_id, run_id="run-7", task="read", status="running"))["ok"]
    answer, _ = await line.ask("step", flow_id=flow_id, run_id="run-7")
    assert (answer["step"]["run_id"], answer["step"]["status"]) == ("run-7", "running")
    missing, _ = await line.ask("step", flow_id=flow_id, run_id="run-8")
    assert missing["error"]["code"] == "not_found"
    foreign, _ = await line.ask("step", flow_id=flow_id, run_id="run-7", session_id="other")
    assert foreign["error"]["code"] == "forbidden"


async def test_a_journal_is_read_from_its_end_page_by_page(line: Line) -> None:
    flow_id = await line.started()
    for number in range(4):
        await line.done("advance", flow_id=flow_id, patch={"n": number})
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        answer, _ = await line.ask("history", flow_id=flow_id, newest=True, limit=2, **cursor)
        seen += [entry["seq"] for entry in answer["events"]]
        if answer["next_cursor"] is None:
            break
        cursor = {"cursor": answer["next_cursor"]}
    assert seen == [6, 5, 4, 3, 2, 1]
    oldest, _ = await line.ask("history", flow_id=flow_id)
    assert [entry["seq"] for entry in oldest["events"]] == [1, 2, 3, 4, 5, 6]


async def test_an_agent_is_told_why_its_flow_waits_and_how_to_go_on_by_itself(line: Line) -> None:
    flow_id = await line.parked("corr-42")
    answer, _ = await line.ask("why", flow_id=flow_id)
    fixes = [sentence["fix"] for sentence in answer["sentences"] if sentence["fix"]]
    assert fixes[0].startswith("taskflow reply agent.delegate.reply corr-42")
    by_hand = await line.started()
    await line.done("wait", flow_id=by_hand, wait_condition={"kind": "manual", "prompt": "ok?"})
    asked, _ = await line.ask("why", flow_id=by_hand)
    assert asked["sentences"][0]["fix"].endswith("--agent kate")
    foreign, _ = await line.ask("why", flow_id=flow_id, session_id="other")
    assert foreign["error"]["code"] == "forbidden"


async def test_why_tells_an_agent_nothing_of_replies_that_are_others(line: Line) -> None:
    """An id of another's reply is what it takes to have it: only who waits for it may know it."""
    flow_id = await line.parked("corr-42")
    await line.reply({"secret": 1}, "corr-43")
    await line.settled()
    answer, _ = await line.ask("why", flow_id=flow_id)
    assert "corr-43" not in msgspec.json.encode(answer).decode()
    body, _ = await line.agent.request("taskflow.admin.why", msgspec.json.encode({"flow_id": flow_id}))
    assert "corr-43" in bytes(body).decode(), "the operator sees it"
