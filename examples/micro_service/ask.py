"""A flow asks an ordinary NATS micro service, which does not even run yet.

    .venv/bin/python examples/micro_service/ask.py

The service is `service.py`, a process of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nats_taskflow import FlowClient

SERVICE = Path(__file__).with_name("service.py")


@asynccontextmanager
async def service() -> AsyncIterator[None]:
    """Run the service."""
    process = await asyncio.create_subprocess_exec(sys.executable, str(SERVICE))
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def main() -> None:
    async with FlowClient.connect(agent="kate") as flows:
        flow = await flows.start(controller_id="kate/sums", goal="add some numbers")
        await flow.delegate("svc.add", {"numbers": [1, 2, 3]}, timeout="10m")
        print(f"{flow.status}: the request waits for somebody who serves svc.add")
        async with service():
            print(f"answer: {(await flow.resumed()).payload}")
            await flow.delegate("svc.add", {"numbers": []}, timeout="10m")
            print(f"error:  {(await flow.resumed()).payload}")
        await flow.finish()
        print(f"{flow.status}")


if __name__ == "__main__":
    asyncio.run(main())
