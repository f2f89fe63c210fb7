"""Measure what one agent's flood costs another (RELIABILITY 4, row 53).

One agent publishes commands as fast as they are stored; meanwhile another asks on `api`, and sends commands on `cmd` whose outcome it
waits for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import nats

from bench.driving import QUIET, ROOT
from bench.figures import Figure
from tests.e2e.stage import Agent, Stage

_AT_ONCE = 500


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    ordered = sorted(seconds)
    return {name: 1000 * ordered[min(int(len(ordered) * part), len(ordered) - 1)] for name, part in (("p50", 0.5), ("p99", 0.99))}


async def asking(kate: Agent, until: asyncio.Event) -> list[float]:
    """Start flows on `api` one after another."""
    took = []
    while not until.is_set():
        began = time.perf_counter()
        answer = await kate.client.request("taskflow.api.kate.start", json.dumps({"controller_id": "k", "goal": "g"}).encode(), timeout=60)
        assert json.loads(answer.data)["ok"]
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return took


async def sending(kate: Agent, until: asyncio.Event) -> list[float]:
    """Start flows on `cmd`, each once the outcome of the one before is there."""
    took = []
    while not until.is_set():
        inbox = f"_INBOX.flood.{uuid4().hex}"
        heard = await kate.client.subscribe(inbox, max_msgs=1)
        began = time.perf_counter()
        await kate.cmd("start", {"controller_id": "k", "goal": "g"}, uuid4().hex, reply_to=inbox)
        await heard.next_msg(timeout=120)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return took


async def flooding(mallory: Agent, commands: int) -> None:
    """Publish the flood, and return when its last command has its outcome."""
    inbox = f"_INBOX.flood.{uuid4().hex}"
    heard = await mallory.client.subscribe(inbox, max_msgs=1)
    slots = asyncio.Semaphore(_AT_ONCE)
    body = json.dumps({"controller_id": "m", "goal": "g"}).encode()

    async def one(number: int) -> None:
        headers = {"Nats-Msg-Id": f"flood-{number}"} | ({"Taskflow-Reply-To": inbox} if number == commands else {})
        try:
            await mallory.js.publish("taskflow.cmd.mallory.start", body, headers=headers, timeout=60)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        for number in range(1, commands + 1):
            await slots.acquire()
            group.create_task(one(number))
    await heard.next_msg(timeout=300)


async def flooded(stage: Stage, commands: int) -> None:
    """Flood from a process of its own, so that its work is not measured as the worker's."""
    command = (sys.executable, "-m", "bench.flood", "--commands", str(commands), "--flood", stage.url)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    assert await process.wait() == 0


async def phase(kate: Agent, work: asyncio.Future[None]) -> tuple[list[float], list[float]]:
    """Measure both doors until the work is done."""
    until = asyncio.Event()
    work.add_done_callback(lambda _: until.set())
    asked, sent = await asyncio.gather(asking(kate, until), sending(kate, until))
    await work
    return asked, sent


async def measure(folder: Path, commands: int = 10_000) -> list[Figure]:
    """Measure quiet, then flood."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        async with Stage(Path(name), settings=QUIET) as stage:
            kate = await stage.agent("kate")
            quiet = await phase(kate, asyncio.ensure_future(asyncio.sleep(3)))
            flood = await phase(kate, asyncio.ensure_future(flooded(stage, commands)))
    figures = []
    for at, door in enumerate(("api", "cmd")):
        calm, busy = f"flood.{door}.quiet", f"flood.{door}.flooded"
        figures += [
            Figure(id=f"{calm}.{part}", what=f"start on {door}, nobody else: {part}", value=value, unit="ms")
            for part, value in percentiles(quiet[at]).items()
        ]
        figures += [
            Figure(
                id=f"{busy}.{part}", what=f"start on {door}, another agent floods: {part}", value=value, unit="ms", base=f"{calm}.{part}"
            )
            for part, value in percentiles(flood[at]).items()
        ]
    return figures


async def main() -> None:
    """Only flood: the process that `flooded` starts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", type=int, default=50_000)
    parser.add_argument("--flood", metavar="URL", required=True, help="the server to flood")
    asked = parser.parse_args()
    client = await nats.connect(asked.flood)
    await flooding(Agent("mallory", client), asked.commands)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
