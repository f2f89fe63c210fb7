"""How many flows a second does one worker resume, end to end, on this machine?

Broker, worker and agent share it. N flows are parked; then N replies are published as fast as the agent can; the clock runs from the
first reply published to the last `resumed` event received. Each resume is durable: reply synced by the broker, change synced by SQLite,
event synced by the broker.

    .venv/bin/python -m bench.first_figure [N]
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import structlog

from tests.e2e.stage import TOPIC, Agent, Stage, encoded, event, in_order, new_id

FLOWS = 10_000
_IN_BATCHES = 500


async def measure(count: int) -> float:
    """Return the resumes per second."""
    with tempfile.TemporaryDirectory(prefix="taskflow-bench-") as folder:
        stage = Stage(Path(folder), settings={"TASKFLOW_LOG_LEVEL": "warning"})
        async with stage:
            kate = await stage.agent()
            await _park(kate, count)
            async with kate.listening("taskflow.evt.*.*.resumed") as heard:
                began = time.perf_counter()
                for number in range(count):
                    await kate.client.publish(TOPIC, encoded({"correlation_id": f"corr-{number}", "payload": {"n": number}}))
                await heard.count(count, within=120)
                return count / (time.perf_counter() - began)


async def _park(agent: Agent, count: int) -> None:
    """Start and park the flows."""
    async with agent.listening("taskflow.evt.*.*.waiting") as parked:
        for first in range(0, count, _IN_BATCHES):
            flows = {number: new_id() for number in range(first, min(first + _IN_BATCHES, count))}
            starts = [
                partial(agent.cmd, "start", {"controller_id": "bench", "goal": "g", "flow_id": f}, f"s-{n}") for n, f in flows.items()
            ]
            waits = [partial(agent.cmd, "wait", {"flow_id": f, "wait_condition": event(f"corr-{n}")}, f"w-{n}") for n, f in flows.items()]
            await in_order(starts)
            await in_order(waits)
        await parked.count(count, within=120)


def main() -> None:
    """Measure, and print one line."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    count = int(sys.argv[1]) if len(sys.argv) > 1 else FLOWS
    rate = asyncio.run(measure(count))
    print(f"{rate:.0f} durable resumes/s end to end ({count} flows; broker, worker and agent on {os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
