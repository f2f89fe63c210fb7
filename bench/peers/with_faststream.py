"""The same worker on faststream: a subscriber of a durable pull consumer."""

from __future__ import annotations

import asyncio
import json
import sys

from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from ledger import opened, resumed


async def main(url: str, path: str) -> None:
    """Work until killed."""
    db = await opened(path)
    broker = NatsBroker(url, logger=None)
    stream = JStream(name="BENCH_IN", declare=False)
    one = asyncio.Lock()  # the database has one writer

    @broker.subscriber("bench.reply", stream=stream, durable="faststream", pull_sub=PullSub(batch_size=100))
    async def on_reply(message: NatsMessage) -> None:
        """Resume the flow, then tell."""
        async with one:
            done = await resumed(db, "bench.reply", json.loads(message.body), message.body)
        if done is not None:
            flow_id, event = done
            await broker.publish(event, f"bench.evt.{flow_id}", stream="BENCH_EVT", headers={"Nats-Msg-Id": f"{flow_id}:4"})

    await broker.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:3]))
