"""An LLM agent whose every step is a step of a flow, so that it may be killed at any moment: `demo.py` does so.

A step asks the model, writes down what it chose, and then does what is *written*. After a kill the step runs again, and the model may
choose something else; but a command of a second run has the id it had in the first, so what was written and done first counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nats_taskflow import Agent, Event, Flow, FlowClient

CONTROLLER = "kate/assistant"
Talk = list[dict[str, Any]]
Model = Callable[[Talk], Awaitable[dict[str, Any]]]
"""What calls the language model: it gets the talk so far, and chooses {"tool": name, "with": arguments} or {"answer": text}."""


def assistant(model: Model, flows: FlowClient | None = None) -> Agent:
    """Return the agent. Its tools are whoever answers on `tools.<name>`: micro services, other agents, `serve_delegate`."""
    agent = Agent(flows, agent="kate", name="assistant")

    @agent.on("started", "resumed", controller=CONTROLLER)
    async def step(flow: Flow, event: Event) -> None:
        """Take one step: a tool, or the answer."""
        talk: Talk = [*flow.state["talk"], *([{"tool": event.reply}] if event.kind == "resumed" else [])]
        written = await flow.advance({"talk": [*talk, {"model": await model(talk)}]})
        choice = written.state["talk"][-1]["model"]
        if "answer" in choice:
            await flow.finish({"answer": choice["answer"]})
        else:
            await flow.delegate(f"tools.{choice['tool']}", choice["with"], timeout="10m", on_timeout="fail")

    return agent
