"""The same worker on taskiq over JetStream: a task for each reply."""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from ledger import opened, resumed
from taskiq.api import run_receiver_task
from taskiq_nats import PullBasedJetStreamBroker


async def main(url: str, path: str) -> None:
    """Work until killed."""
    db = await opened(path)
    one = asyncio.Lock()  # the database has one writer
    client = await nats.connect(url)
    js = client.jetstream()
    broker = PullBasedJetStreamBroker(url, subject="bench.reply", stream_name="BENCH_IN", durable="taskiq")

    @broker.task(task_name="resumed")
    async def on_reply(body: dict[str, object]) -> None:
        """Resume the flow, then tell."""
        async with one:
            done = await resumed(db, "bench.reply", body, json.dumps(body).encode())
        if done is not None:
            flow_id, event = done
            await js.publish(f"bench.evt.{flow_id}", event, headers={"Nats-Msg-Id": f"{flow_id}:4"})

    await broker.startup()
    print("ready", flush=True)
    await run_receiver_task(broker)


asyncio.run(main(*sys.argv[1:3]))
