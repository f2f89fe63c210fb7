"""DBOS Transact on SQLite: workflows that wait in `recv`, resumed by `send`."""

from __future__ import annotations

import asyncio
import sys

from dbos import DBOS, SetWorkflowID
from timing import Resumes, payload, timed, told


async def main(count: int, paced: int) -> None:
    """Measure."""
    DBOS(config={"name": "bench", "system_database_url": "sqlite:///dbos.sqlite", "log_level": "ERROR", "run_migrations": True})
    resumes = Resumes()

    @DBOS.workflow()
    async def flow(number: int) -> None:
        """Wait for the reply."""
        await DBOS.recv_async("reply", timeout_seconds=600)
        resumes.heard(number)

    DBOS.launch()

    async def park(number: int) -> None:
        with SetWorkflowID(f"w-{number}"):
            await DBOS.start_workflow_async(flow, number)

    async def resume(number: int) -> None:
        await DBOS.send_async(f"w-{number}", payload(number), "reply")

    told(await timed(resumes, park, resume, count=count, paced=paced, rate=20))
    DBOS.destroy()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
