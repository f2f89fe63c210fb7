"""Measure what one agent's flood costs another (RELIABILITY 4, row 53): `python bench/flood.py [--commands 50000]`.

A broker and a worker of their own. One agent publishes commands as fast as they are stored; meanwhile another asks on `api`, and sends
commands on `cmd` whose outcome it waits for. Printed: their latencies before, during and after the flood.
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

from tests.e2e.stage import Agent, Stage

_AT_ONCE = 500


def shown(name: str, seconds: list[float]) -> str:
    """Return percentiles in milliseconds."""
    if not seconds:
        return f"{name}: none"
    ordered = sorted(seconds)
    p50, p99 = (1000 * ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99))
    return f"{name}: n={len(ordered)} p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {1000 * ordered[-1]:.1f} ms"


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
    command = (sys.executable, __file__, "--commands", str(commands), "--flood", stage.url)
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def phase(name: str, kate: Agent, work: asyncio.Future[None]) -> None:
    """Measure both doors until the work is done."""
    until = asyncio.Event()
    work.add_done_callback(lambda _: until.set())
    began = time.perf_counter()
    asked, sent = await asyncio.gather(asking(kate, until), sending(kate, until))
    await work
    print(f"{name} ({time.perf_counter() - began:.1f} s)\n  {shown('api', asked)}\n  {shown('cmd', sent)}")


async def main() -> None:
    """Measure quiet, flood, quiet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", type=int, default=50_000)
    parser.add_argument("--flood", metavar="URL", help="only flood this server, and end")
    asked = parser.parse_args()
    if asked.flood:
        client = await nats.connect(asked.flood)
        await flooding(Agent("mallory", client), asked.commands)
        await client.close()
        return
    with tempfile.TemporaryDirectory() as folder:
        async with Stage(Path(folder)) as stage:
            kate = await stage.agent("kate")
            await phase("quiet", kate, asyncio.ensure_future(asyncio.sleep(3)))
            await phase(f"flood of {asked.commands}", kate, asyncio.ensure_future(flooded(stage, asked.commands)))
            await phase("quiet again", kate, asyncio.ensure_future(asyncio.sleep(3)))


if __name__ == "__main__":
    asyncio.run(main())
