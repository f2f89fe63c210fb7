"""The assistant breaks off where it hurts most: `pytest examples/agent_loop`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest
from assistant import CONTROLLER, Talk, assistant

from nats_taskflow.client import DelegateCall, Flow, serve_delegate
from nats_taskflow.testing import TaskflowWorld

FLIGHTS = ["flight A", "flight B", "flight C"]
Call = Callable[..., Awaitable[Any]]


class Model:
    """A model that chooses another flight each time it is asked."""

    def __init__(self) -> None:
        self.chose: list[str] = []

    async def __call__(self, talk: Talk) -> dict[str, Any]:
        match talk[-1]:
            case {"tool": {"found": flights}}:
                self.chose.append(flights[len(self.chose)])
                return {"tool": "book", "with": self.chose[-1]}
            case {"tool": {"booked": flight}}:
                return {"answer": flight}
            case _:
                return {"tool": "search", "with": "Oslo"}


@pytest.fixture
async def booked(taskflow: TaskflowWorld) -> AsyncIterator[list[str]]:
    """The tools, and what was booked with them."""
    tools, booked = await taskflow.client("tools"), []

    async def search(asked: DelegateCall) -> dict[str, Any]:
        return {"found": FLIGHTS}

    async def book(asked: DelegateCall) -> dict[str, Any]:
        booked.append(asked.payload)
        return {"booked": asked.payload}

    async with AsyncExitStack() as serving:
        for name, tool in (("search", search), ("book", book)):
            await serving.enter_async_context(serve_delegate(f"tools.{name}", tool, on=tools))
        yield booked


async def begun(taskflow: TaskflowWorld, model: Model) -> Flow:
    kate = await taskflow.client("kate")
    taskflow.run(assistant(model, kate).run())
    return await kate.start(controller_id=CONTROLLER, goal="book a flight", state={"talk": [{"user": "to Oslo"}]})


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method, call", [("advance", 1), ("delegate", 1), ("advance", 2), ("delegate", 2), ("advance", 3)])
async def test_wherever_it_breaks_off_one_flight_is_booked(
    taskflow: TaskflowWorld, booked: list[str], monkeypatch: pytest.MonkeyPatch, method: str, call: int, when: str
) -> None:
    whole: Call = getattr(Flow, method)
    calls = count(1)

    async def broken(*given: Any, **named: Any) -> Any:
        here = next(calls) == call
        assert not (here and when == "before"), "broken off"
        result = await whole(*given, **named)
        assert not here, "broken off"
        return result

    monkeypatch.setattr(Flow, method, broken)
    model = Model()
    flow = await begun(taskflow, model)
    await taskflow.clock.advance("1m")
    it = await taskflow.assert_finished(flow)
    assert booked == [it["state"]["answer"]]
    assert booked[0] in model.chose


async def test_what_was_written_first_counts_though_the_model_changes_its_mind(
    taskflow: TaskflowWorld, booked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Call = Flow.delegate
    broken = count()

    async def breaks_off(flow: Flow, to: str, *given: Any, **named: Any) -> Any:
        assert to != "tools.book" or next(broken), "broken off"
        return await whole(flow, to, *given, **named)

    monkeypatch.setattr(Flow, "delegate", breaks_off)
    model = Model()
    flow = await begun(taskflow, model)
    await taskflow.clock.advance("1m")
    await taskflow.assert_finished(flow, state={"answer": "flight A"})
    assert (model.chose, booked) == (["flight A", "flight B"], ["flight A"])
