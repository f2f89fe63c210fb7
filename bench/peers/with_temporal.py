"""Temporal's dev server: workflows that wait for a signal. The server is a program of its own, which the SDK downloads where it may."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import Any

from temporalio import workflow
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from timing import Resumes, payload, timed, told

RESUMES: list[Resumes] = []


@workflow.defn(sandboxed=False)
class Flow:
    """A flow that waits for one reply."""

    def __init__(self) -> None:
        self._reply: Any = None

    @workflow.run
    async def run(self, number: int) -> None:
        """Wait for the reply."""
        await workflow.wait_condition(lambda: self._reply is not None)
        RESUMES[0].heard(number)

    @workflow.signal
    def reply(self, value: dict[str, Any]) -> None:
        """Take the reply."""
        self._reply = value


async def main(count: int, paced: int) -> None:
    """Measure."""
    resumes = Resumes()
    RESUMES.append(resumes)
    try:
        there = await WorkflowEnvironment.start_local(
            dev_server_existing_path=shutil.which("temporal"), dev_server_extra_args=["--db-filename", "temporal.db"]
        )
    except RuntimeError as absent:
        told({"missing": f"no dev server: put `temporal` on PATH ({str(absent)[:90]})"})
        return
    async with there as env, Worker(env.client, task_queue="bench", workflows=[Flow]):

        async def park(number: int) -> None:
            await env.client.start_workflow(Flow.run, number, id=f"w-{number}", task_queue="bench")

        async def resume(number: int) -> None:
            await env.client.get_workflow_handle(f"w-{number}").signal(Flow.reply, payload(number))

        told(await timed(resumes, park, resume, count=count, paced=paced, rate=20))


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
