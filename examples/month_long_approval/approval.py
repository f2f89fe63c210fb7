"""An agent that gets a budget approved, however long that takes: a reminder each week, somebody else after two, an end after four.

    .venv/bin/python examples/month_long_approval/approval.py "two new servers" 12000
    .venv/bin/python examples/month_long_approval/approval.py

The first asks for something, the second goes on with what was asked before. Every step is an event of the flow, so the agent keeps nothing
in its memory: kill it, start it again a week later, and it goes on.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from nats_taskflow.client import Agent, Event, Flow, FlowClient, any_of, manual, reply

CONTROLLER = "finance/approval"
ANSWERS = "agent.delegate.reply"
"""Where answers from other programs come in; people answer with `taskflow flow resume`, or through the agent's own page."""
WEEK = "7d"
APPROVERS = ("team lead", "team lead", "head of department", "head of department")
"""Who is asked in each week. After the last one nobody is left to ask."""


async def ask_for_approval(flows: FlowClient, what: str, amount: int) -> Flow:
    """Start an approval, and ask the first approver."""
    flow = await flows.start(controller_id=CONTROLLER, goal=f"approve {what}", state={"what": what, "amount": amount, "sent": []})
    await _ask(flow, 0, [])
    return flow


def agent_for(flows: FlowClient) -> Agent:
    """Return the agent that drives approvals on. It has to run for as long as there are any."""
    agent = Agent(flows, name="approvals")

    @agent.on("resumed", controller=CONTROLLER)
    async def heard(flow: Flow, event: Event) -> None:
        """Take an answer, or a week without one."""
        sent = event_state(flow, event)
        answer = event.reply
        if answer != {"timed_out": True}:
            await _decide(flow, answer)
        elif len(sent) < len(APPROVERS):
            await _ask(flow, len(sent), sent)
        else:
            await flow.fail("nobody decided within four weeks")

    return agent


def event_state(flow: Flow, event: Event) -> list[str]:
    """Return who had been asked when the event happened: a delivery may come twice, and the state have moved on since."""
    asked: list[str] = flow.state["sent"]
    return asked[: int(event.current_step.rpartition(" ")[2])]


async def _ask(flow: Flow, week: int, sent: list[str]) -> None:
    """Ask, and wait a week for an answer of any kind."""
    approver = APPROVERS[week]
    await flow.advance({"sent": [*sent, approver]}, current_step=f"asked {week + 1}")
    answer = any_of(reply(ANSWERS, f"approval-{flow.id}"), manual(f"{approver}: do you approve {flow.state['what']}?"), timeout=WEEK)
    await flow.wait(answer)
    print(f"{flow.state['what']}: the {approver} is asked, and has {WEEK} to answer", flush=True)


async def _decide(flow: Flow, answer: dict[str, dict[str, object]]) -> None:
    """Finish with what was decided: by a reply (part 0 of the wait) or by hand."""
    decision = answer.get("0") or answer.get("1") or answer
    approved = bool(decision.get("approved"))
    await flow.finish({"approved": approved, "by": decision.get("by")})
    print(f"{flow.state['what']}: {'approved' if approved else 'refused'} by {decision.get('by')}", flush=True)


async def main(wanted: list[str]) -> None:
    """Ask for what is wanted, if anything is, and run the agent until it is stopped."""
    async with FlowClient.connect(agent="finance") as flows:
        if wanted:
            what, amount = wanted
            flow = await ask_for_approval(flows, what, int(amount))
            print(f"""To answer:\n  taskflow flow resume {flow.id} --patch '{{"approved": true, "by": "Ann"}}' --reason 'she said yes'""")
        print("The agent runs; Ctrl-C ends it, and the next start goes on.", flush=True)
        await agent_for(flows).run(stop_on=[signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
