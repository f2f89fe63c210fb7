"""A worker as one writes it first: pull a few, and for each message one transaction, one publish, one ack."""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from ledger import opened, resumed
from nats.errors import TimeoutError as NothingCame


async def main(url: str, path: str) -> None:
    """Work until killed."""
    db = await opened(path)
    client = await nats.connect(url)
    js = client.jetstream()
    pull = await js.pull_subscribe("bench.reply", durable="naive", stream="BENCH_IN")
    print("ready", flush=True)
    while True:
        try:
            messages = await pull.fetch(100, timeout=5)
        except NothingCame:
            continue
        for message in messages:
            done = await resumed(db, message.subject, json.loads(message.data), message.data)
            if done is not None:
                flow_id, event = done
                await js.publish(f"bench.evt.{flow_id}", event, headers={"Nats-Msg-Id": f"{flow_id}:4"})
            await message.ack()


asyncio.run(main(*sys.argv[1:3]))
