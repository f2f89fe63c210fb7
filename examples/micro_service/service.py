"""A NATS micro service that adds numbers. It was there before, and not one of its lines knows what a flow is."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import nats
from nats import micro
from nats.micro.request import Request


async def add(request: Request) -> None:
    numbers = json.loads(request.data)["numbers"]
    if numbers:
        await request.respond(json.dumps({"sum": sum(numbers)}).encode())
    else:
        await request.respond_error("422", "there is nothing to add")


async def main() -> None:
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    service = await micro.add_service(nc, name="adder", version="1.0.0")
    await service.add_endpoint(name="add", subject="svc.add", handler=add)
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    await stop.wait()
    await nc.drain()


asyncio.run(main())
