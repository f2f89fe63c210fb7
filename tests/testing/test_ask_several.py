"""The recipe of docs/client.md, "Ask several at once": wherever it breaks off, each is asked once, and the flow comes to its end."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.client import Agent, DelegateCall, FlowClient, serve_delegate
from nats_taskflow.testing import TaskflowWorld

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
RECIPE = next(block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "async def ask_all" in block)
COMMANDS = 9  # three starts, one wait, three delegations, two answers of children; the choice is the tenth


def recipe(flows: FlowClient) -> Agent:
    """Return the recipe's agent, on a connection in memory."""
    names: dict[str, Any] = {}
    exec(compile(RECIPE.partition("asyncio.run(")[0], "docs/client.md", "exec"), names)  # noqa: S102  what the page shows, as it stands there
    agent: Agent = names["agent"]
    agent._flows = flows
    return agent


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("command", range(1, COMMANDS + 2))
async def test_wherever_it_breaks_off_each_is_asked_once(
    taskflow: TaskflowWorld, monkeypatch: pytest.MonkeyPatch, command: int, when: str
) -> None:
    kate, carriers = await taskflow.client("kate"), await taskflow.client("carriers")
    asked: list[str] = []

    async def quote(request: DelegateCall) -> dict[str, int]:
        asked.append(request.subject)
        return {"price": request.payload["kg"] * (3 if "rail" in request.subject else 5)}

    flow = await kate.start(controller_id="kate/parcel", goal="find a carrier", state={"kg": 7})
    sending, sent = FlowClient.send, count(1)

    async def broken(flows: FlowClient, verb: str, *given: Any, **named: Any) -> Any:
        here = next(sent) == command
        assert not (here and when == "before"), "broken off"
        done = await sending(flows, verb, *given, **named)
        assert not here, "broken off"
        return done

    monkeypatch.setattr(FlowClient, "send", broken)
    async with serve_delegate("carriers.rail.quote", quote, on=carriers), serve_delegate("carriers.road.quote", quote, on=carriers):
        taskflow.run(recipe(kate).run())
        await taskflow.clock.advance("10m")
        await taskflow.assert_finished(flow, state={"carrier": "rail"})
    assert next(sent) > COMMANDS + 2, "nothing was broken off"
    assert sorted(asked) == ["carriers.rail.quote", "carriers.road.quote"]
    assert len([one async for one in kate.list() if one.snapshot.controller_id == "kate/quote"]) == 3
