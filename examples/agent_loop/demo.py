"""The assistant is killed twice while it books a flight: once before the booking is sent, once right after. One flight is booked.

    .venv/bin/python examples/agent_loop/demo.py

What is to be copied is `assistant.py`; here are its tools, its model, and its murderer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any
from unittest.mock import patch

from assistant import CONTROLLER, Talk, assistant

from nats_taskflow import DelegateCall, Flow, FlowClient, serve_delegate

FLIGHTS = ["flight A", "flight B", "flight C"]


async def main() -> None:
    """Serve the tools, and see the assistant die until it is done."""
    booked: list[str] = []

    async def search(asked: DelegateCall) -> dict[str, Any]:
        return {"found": FLIGHTS}

    async def book(asked: DelegateCall) -> dict[str, Any]:
        booked.append(asked.payload)
        return {"booked": asked.payload}

    async with (
        FlowClient.connect(agent="kate") as flows,
        serve_delegate("tools.search", search, on=flows),
        serve_delegate("tools.book", book, on=flows),
    ):
        flow = await flows.start(
            controller_id=CONTROLLER, goal="book a flight", state={"talk": [{"user": "I have to be in Oslo on Monday"}]}
        )
        for number in (1, 2, 3):
            print(f"life {number}", flush=True)
            life = await asyncio.create_subprocess_exec(sys.executable, __file__, str(number))
            if number == 3:
                async for _ in flow.events():
                    pass  # until the flow has ended
                life.send_signal(signal.SIGTERM)
            print("  stopped" if await life.wait() == 0 else "  killed")
        await flow.refresh()
        print(f"{flow.status}: {flow.state['answer']}")
        print(f"booked: {', '.join(booked)}")


async def live(number: int) -> None:
    """Run the assistant, in this process, until it is told to stop; in its first two lives it dies over the booking."""

    async def model(talk: Talk) -> dict[str, Any]:
        """Be the language model: a script, that chooses another flight in each life."""
        match talk[-1]:
            case {"user": text}:
                choice = {"tool": "search", "with": text}
            case {"tool": {"found": flights}}:
                choice = {"tool": "book", "with": flights[number - 1]}
            case {"tool": {"booked": flight}}:
                choice = {"answer": f"You fly with {flight}."}
            case _:
                raise AssertionError(talk)
        print(f"  the model chooses: {' '.join(choice.values())}", flush=True)
        return choice

    advance, delegate = Flow.advance, Flow.delegate

    async def advance_or_die(flow: Flow, patch: dict[str, Any]) -> Any:
        written = await advance(flow, patch)
        if number == 1 and written.state["talk"][-1]["model"].get("tool") == "book":
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    async def delegate_and_die(flow: Flow, to: str, payload: Any, **more: Any) -> Any:
        print(f"  the assistant asks {to}: {payload}", flush=True)
        parked = await delegate(flow, to, payload, **more)
        if number == 2 and to == "tools.book":
            os.kill(os.getpid(), signal.SIGKILL)
        return parked

    with patch.object(Flow, "advance", advance_or_die), patch.object(Flow, "delegate", delegate_and_die):
        await assistant(model).run(stop_on=[signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    asyncio.run(live(int(sys.argv[1])) if sys.argv[1:] else main())
