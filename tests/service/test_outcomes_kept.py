"""What is stored of an outcome has a bounded size, and what a repeat is told has not changed by a byte (SEMANTICS 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nats_taskflow.engine.stored_outcomes import _PAGES
from nats_taskflow.store.sqlite.steps import PAGE_BYTES
from tests.service.line import Line

HEAVY = {"text": "x" * 240_000}


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    made = Line(tmp_path / "flows.db")
    await made.start()
    yield made
    await made.stop()


async def told(line: Line, verb: str, msg_id: str, **fields: Any) -> bytes:
    """Return the answer to a request, in bytes."""
    body = msgspec.json.encode(fields)
    answer, _ = await line.agent.request(f"taskflow.api.kate.{verb}", body, {"Nats-Msg-Id": msg_id} if verb != "outcome" else {}, within=30)
    return answer


async def stored(line: Line) -> int:
    """Return how many bytes all outcomes have that are stored."""
    return int((await line.store._read("SELECT sum(length(result)) FROM inbox", ()))[0][0])


async def test_two_hundred_small_changes_of_a_large_state_do_not_store_it_two_hundred_times(line: Line) -> None:
    flow_id = await line.started(state=HEAVY)
    answers = [await told(line, "advance", f"a{n}", flow_id=flow_id, patch={"n": n}) for n in range(200)]
    assert all(len(answer) > 240_000 for answer in answers), "each is answered with the state"
    assert await stored(line) < 201 * 1024


@pytest.mark.parametrize(
    "verb, fields",
    [
        ("advance", {"patch": {"é": [1, 2.50, None], "text": "y" * 5_000}}),
        ("wait", {"wait_condition": {"kind": "manual", "prompt": "p" * 9_000}}),
        ("observe", {"run_id": "r", "task": "t", "status": "running", "result": ["z" * 9_000]}),
        ("cancel", {"reason": "enough"}),
        ("finish", {"final_state": {"b": "c" * 9_000}}),
    ],
)
async def test_a_repeat_is_told_the_same_bytes_also_when_the_flow_has_moved_on(line: Line, verb: str, fields: dict[str, Any]) -> None:
    flow_id = await line.started(state={"b": 1, "a": {"z": 1, "y": "x" * 9_000}})
    first = await told(line, verb, "one", flow_id=flow_id, **fields)
    assert await told(line, verb, "one", flow_id=flow_id, **fields) == first
    assert await told(line, "outcome", "", command_id="one") == first
    await told(line, "resume", "two", flow_id=flow_id, patch={"after": 1})
    await told(line, "advance", "three", flow_id=flow_id, patch={"b": 2})
    await told(line, "observe", "four", flow_id=flow_id, run_id="other", task="t", status="failed")
    assert await told(line, verb, "one", flow_id=flow_id, **fields) == first
    assert await stored(line) < 8 * 6_000


async def test_what_cannot_be_put_back_is_told_without_it(line: Line) -> None:
    flow_id = await line.started(state=HEAVY)
    first = msgspec.json.decode(await told(line, "observe", "one", flow_id=flow_id, run_id="r", task="t", status="running", result=HEAVY))
    await told(line, "observe", "two", flow_id=flow_id, run_id="r", task="t", status="failed")
    again = msgspec.json.decode(await told(line, "observe", "one", flow_id=flow_id, run_id="r", task="t", status="running", result=HEAVY))
    assert again.pop("state_omitted") is again["flow"].pop("state_omitted") is True
    del first["flow"]["state"]
    assert again == first | {"step": first["step"] | {"result": None}}, "the run was observed again, and what it was is nowhere"


async def test_a_long_journal_is_not_gone_through_for_a_repeat(line: Line) -> None:
    flow_id = await line.started(state=HEAVY)
    for number in range(_PAGES * (PAGE_BYTES // 240_000 + 1) + 2):
        await told(line, "advance", f"a{number}", flow_id=flow_id, patch=HEAVY | {"n": number})
    last = await told(line, "advance", f"a{number}", flow_id=flow_id, patch=HEAVY | {"n": number})
    assert msgspec.json.decode(last)["flow"]["state"]["n"] == number, "its row still has it"
    await told(line, "advance", "after", flow_id=flow_id)
    again = msgspec.json.decode(await told(line, "outcome", "", command_id=f"a{number}"))
    assert (again["ok"], again["state_omitted"], again["flow"]["revision"]) == (True, True, number + 2)


async def test_an_inbox_is_told_the_outcome_whole_and_of_a_flood_what_is_stored(line: Line) -> None:
    flow_id = await line.started(state=HEAVY)
    heard = await line.agent.subscribe("_INBOX.kate.>")
    for number in range(150):
        await line.command("advance", f"a{number}", {"Taskflow-Reply-To": f"_INBOX.kate.{number}"}, flow_id=flow_id, patch={"n": number})
    answers = [msgspec.json.decode((await asyncio.wait_for(heard.get(), 30)).body) for _ in range(150)]
    assert all(answer["ok"] for answer in answers)
    whole = [answer for answer in answers if "state_omitted" not in answer]
    assert whole
    assert all(answer["flow"]["state"]["text"] == HEAVY["text"] for answer in whole)
