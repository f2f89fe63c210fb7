"""The messages of nexo-taskflow's agents, as they are, against this worker; only the worker's configuration is new.

    .venv/bin/taskflow dev --config examples/nexo-taskflow.toml
    .venv/bin/python examples/moving_from_nexo/replay.py

Flows are started and parked by the client here; that is what takes the place of the reference's host, which did so in its own process.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from nats_taskflow import Flow, FlowClient

TOPIC = "agent.route.kate"


def envelope(topic: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Put a message into the bus envelope."""
    return {
        "id": str(uuid.uuid4()),
        "timestamp": "2026-11-21T10:00:00Z",
        "topic": topic,
        "source": "bob",
        "session_id": None,
        "payload": payload,
    }


def routed(correlation_id: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Say what bob tells kate over the bus."""
    return envelope(TOPIC, {"from": "bob", "to": "kate", "correlation_id": correlation_id, "payload": payload})


async def parked(flows: FlowClient, correlation_id: str) -> Flow:
    """Create a flow and park it, as the reference's host does: `create_managed`, `start_running`, `set_waiting`."""
    state = {"verses_done": 0, "total": 31}
    flow = await flows.start(controller_id="kate/bible-upload", goal="upload chapter 1", current_step="verse-0", state=state)
    await flow.wait({"kind": "external_event", "topic": TOPIC, "correlation_id": correlation_id})
    return flow


async def main() -> None:
    async with FlowClient.connect(agent="kate") as flows:

        async def play(subject: str, message: dict[str, Any]) -> None:
            """Publish a message; the agents of the reference do it without waiting for the broker's word."""
            await flows.transport.tell(subject, json.dumps(message).encode())

        corr = f"corr-{uuid.uuid4()}"
        flow = await parked(flows, corr)
        await play(TOPIC, routed(corr, {"kind": "progress", "task_id": "t-1", "text": "half way"}))
        await play(TOPIC, routed(corr, {"kind": "result", "task_id": "t-1", "output": {"verses": 31}}))
        print("a result on the bus, in the envelope:", (await flow.resumed()).payload)
        await flow.finish()

        corr = f"corr-{uuid.uuid4()}"
        await play(TOPIC, routed(corr, {"kind": "result", "task_id": "t-2", "output": "early"}))
        flow = await parked(flows, corr)
        print("a result before anybody waits, which was lost:", (await flow.resumed()).payload)
        await flow.finish()

        corr = f"corr-{uuid.uuid4()}"
        for how, wrap in (("bare", dict), ("in the envelope", lambda message: envelope("taskflow.resume", message))):
            flow = await parked(flows, corr)
            await play("taskflow.resume", wrap({"flow_id": flow.id, "topic": TOPIC, "correlation_id": corr, "payload": {"sent": how}}))
            print(f"taskflow.resume, {how}:", (await flow.resumed()).payload)
            print("  state:", {name: value for name, value in flow.state.items() if name != "resume_meta"})
            await flow.finish()


if __name__ == "__main__":
    asyncio.run(main())
