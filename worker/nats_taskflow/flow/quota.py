"""Bound how many flows an agent has open, and the bytes of their states.

See RELIABILITY 9, "a neighbour stores". Everything is counted, but only two things are refused: that an agent starts a flow, or lets a
state grow. Replies, time and operators are not refused, nor is what ends or shrinks a flow. Nothing may be lost, and whoever is over a
quota must be able to get below it.
"""

from __future__ import annotations

from nats_taskflow.errors import FlowError, QuotaExceeded
from nats_taskflow.flow.decision import Decision, View
from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import AdvanceFlow, ResumeFlow, StartFlow
from nats_taskflow.flow.usage import Usages

Bounded = StartFlow | AdvanceFlow | ResumeFlow
"""The commands that may be refused."""
RETRY_AFTER = 60
"""Seconds: how often ended flows are deleted. Room that the agent itself makes is there at once."""


def bounded_agent(command: Bounded, policy: Policy) -> str | None:
    """Return the agent whose quota a command may exceed, or None.

    None: no quota is set, or none applies to the caller.
    """
    if policy.max_open_flows is None and policy.max_state_bytes_of_agent is None:
        return None
    if command.caller.owner is None or (isinstance(command, ResumeFlow) and command.patch is None):
        return None
    return agent_of(command.caller.owner)


def within_quota(command: Bounded, decision: Decision | FlowError, view: View, policy: Policy) -> Decision | FlowError:
    """Return the decision, or the refusal where it takes the agent over a quota."""
    agent = bounded_agent(command, policy)
    if agent is None or isinstance(decision, FlowError):
        return decision
    growth = Usages()
    for change in decision.changes:
        growth.note(view.flow(change.flow.id), change.flow)
    more, used = growth.of(agent), view.usage(agent)
    for quota, what, remedy, limit, used_before, added in (
        ("open_flows", "the open flows", "end some", policy.max_open_flows, used.open_flows, more.open_flows),
        ("state_bytes", "the bytes of all states", "shrink some", policy.max_state_bytes_of_agent, used.state_bytes, more.state_bytes),
    ):
        if limit is not None and added > 0 and used_before + added > limit:
            message = f"{what} of this agent would be {used_before + added:,} and may be {limit:,}: {remedy}, or ask the operator for more"
            return QuotaExceeded(f"{message} (quotas.{quota})", quota=quota, limit=limit, used=used_before, retry_after=RETRY_AFTER)
    return decision
