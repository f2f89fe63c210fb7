"""Three carriers are asked for a price; the first two answers are enough, and the third one comes too late.

    .venv/bin/python examples/fan_out/quotes.py

The carriers are served here, too, so that there is somebody to ask.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

from nats_taskflow import DelegateCall, Flow, FlowClient, serve_delegate
from nats_taskflow.client import at_least, reply

CARRIERS = ("rail", "road", "sea")
ANSWERS = "taskflow.reply.kate"
"""The reply topic that every agent has. `<topic>.<correlation id>` is an ordinary reply subject: any NATS responder can answer there."""


async def ask(flows: FlowClient, parcel: dict[str, Any]) -> Flow:
    """Ask all carriers, and park until two of them have answered. Answers that are faster than the parking are held for it."""
    flow = await flows.start(controller_id="kate/parcel", goal="find a carrier", state={"parcel": parcel})
    for carrier in CARRIERS:
        # The id of the request makes a repeat harmless, so ask again whenever in doubt; the flow's id has the answer stored for certain.
        headers = {"Nats-Msg-Id": f"{flow.id}-{carrier}:request", "Taskflow-Flow-Id": flow.id}
        answer_to = f"{ANSWERS}.{flow.id}-{carrier}"
        await flows.transport.tell(f"carriers.{carrier}.quote", json.dumps(parcel).encode(), headers, reply=answer_to)
    await flow.wait(at_least(2, *(reply(ANSWERS, f"{flow.id}-{carrier}") for carrier in CARRIERS), timeout="1h", on_timeout="fail"))
    return flow


async def choose(flow: Flow) -> None:
    """Take the cheaper of the two. What came stands under the number of its part of the wait: {"0": ..., "1": ...}."""
    answers = (await flow.resumed()).payload
    quotes = {CARRIERS[int(part)]: answer["price"] for part, answer in answers.items()}
    await flow.finish({"quotes": quotes, "carrier": min(quotes, key=quotes.__getitem__)})


async def main() -> None:
    chosen = asyncio.Event()

    async def rail(asked: DelegateCall) -> dict[str, int]:
        return {"price": 3 * asked.payload["kg"]}

    async def road(asked: DelegateCall) -> dict[str, int]:
        return {"price": 5 * asked.payload["kg"]}

    async def sea(asked: DelegateCall) -> dict[str, int]:
        await chosen.wait()  # sea is slow
        return {"price": asked.payload["kg"]}

    async with FlowClient.connect(agent="kate") as flows:
        before = await late_replies(flows)
        async with AsyncExitStack() as serving:
            for carrier, quote in zip(CARRIERS, (rail, road, sea), strict=True):
                await serving.enter_async_context(serve_delegate(f"carriers.{carrier}.quote", quote, on=flows))
            flow = await ask(flows, {"kg": 7})
            print(f"{', '.join(CARRIERS)} are asked; two answers are enough")
            await choose(flow)
            print(f"resume_event: {json.dumps(flow.state['resume_event'], sort_keys=True)}")
            print(f"{flow.status}: {flow.state['carrier']} for {flow.state['quotes'][flow.state['carrier']]}")
            chosen.set()  # now sea answers, and the block ends when that is stored
        # Commands and replies are decided in the order in which they were stored: after this command, sea's answer is.
        await (await flows.start(controller_id="kate/parcel", goal="come behind the answer of sea")).finish()
        print(f"the answer of sea is recorded as late: {await late_replies(flows) - before}")


async def late_replies(flows: FlowClient) -> int:
    """Ask how many replies came too late so far, as `taskflow stats` does."""
    answer = await flows.transport.request("taskflow.admin.stats", b"{}", timeout=5)
    return int(json.loads(answer.body)["messages"].get("late", 0))


if __name__ == "__main__":
    asyncio.run(main())
