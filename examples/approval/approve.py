"""Ann has to say yes before a mail goes out: a flow that waits for a person, and what becomes of it when she does not answer.

    .venv/bin/python examples/approval/approve.py

Here Ann and the program that waits for her are one process. They need not be: the worker keeps the flow and its deadline, whoever runs.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys

from nats_taskflow import Flow, FlowClient
from nats_taskflow.client import FlowEnded


async def ask(flows: FlowClient, mail: str, *, within: str) -> Flow:
    """Park a flow on Ann's word. Without it, the worker fails the flow: nobody has to run for that."""
    flow = await flows.start(controller_id="kate/mail", goal=f"send {mail}", state={"mail": mail})
    await flow.wait_manual(f"Ann: may {mail} go out?", timeout=within, on_timeout="fail")
    return flow


async def go_on(flow: Flow) -> None:
    """Wait until it is decided, and do what was decided."""
    try:
        answer = await flow.resumed()
    except FlowEnded:
        await flow.refresh()
        return
    await flow.finish({"sent": answer.payload["approved"], "because": answer.reason})


async def ann(flow: Flow, reason: str, *, approved: bool) -> None:
    """Do what Ann does: `taskflow waits` shows her what is asked, and this answers it. A program would call `flow.resume`."""
    said = ["flow", "resume", flow.id, "--operator", "ann", "--reason", reason, "--patch", json.dumps({"approved": approved})]
    print(f"  $ taskflow {shlex.join(said)}")
    taskflow = await asyncio.create_subprocess_exec(sys.executable, "-m", "nats_taskflow", *said, stdout=asyncio.subprocess.DEVNULL)
    assert await taskflow.wait() == 0


async def main() -> None:
    async with FlowClient.connect(agent="kate") as flows:
        print("Ann answers within three days.")
        flow = await ask(flows, "the newsletter", within="3d")
        await ann(flow, "read and found good", approved=True)
        await go_on(flow)
        print(f"  {flow.status}: sent={flow.state['sent']}, because {flow.state['because']!r}")

        print("Ann does not answer, and has a second to do so.")
        flow = await ask(flows, "the price list", within="1s")
        await go_on(flow)
        print(f"  {flow.status}: {flow.state['failure']['reason']}")

        print("What happened is kept, with who did it:")
        async for entry in flow.history():
            print(f"  {entry.seq} {entry.kind.value} by {entry.actor}")


if __name__ == "__main__":
    asyncio.run(main())
