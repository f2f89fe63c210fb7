"""Count the open flows of each agent, and the bytes of all its states.

The states of ended flows count until they are deleted.
"""

from __future__ import annotations

import msgspec

from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import TERMINAL
from nats_taskflow.flow.model import Flow


class Usage(msgspec.Struct):
    """What the flows of one agent take, or a change of that."""

    open_flows: int = 0
    state_bytes: int = 0


class Usages(msgspec.Struct):
    """What agents' flows take: the database's count, and the changes since then.

    `stored`: the count, for the agents whose quota matters. `changed`: the changes, for every agent. `owners`: where each owner's changes
    are counted; those of an owner that is no agent count nowhere else.
    """

    stored: dict[str, Usage] = msgspec.field(default_factory=dict)
    changed: dict[str, Usage] = msgspec.field(default_factory=dict)
    owners: dict[str, Usage] = msgspec.field(default_factory=dict)

    def of(self, agent: str) -> Usage:
        """Return what the agent's flows take now."""
        stored, changed = self.stored.get(agent, Usage()), self.changed.get(agent, Usage())
        return Usage(stored.open_flows + changed.open_flows, stored.state_bytes + changed.state_bytes)

    def note(self, before: Flow | None, flow: Flow) -> None:
        """Count what a flow takes now, less what it took before.

        The bytes of what it was are dropped: nobody writes them any more.
        """
        owner = flow.owner_session_key
        if owner not in self.owners:
            agent = agent_of(owner)
            self.owners[owner] = Usage() if agent is None else self.changed.setdefault(agent, Usage())
        usage = self.owners[owner]
        usage.state_bytes += len(flow.state_stored)
        usage.open_flows += flow.status not in TERMINAL
        if before is not None:
            usage.state_bytes -= len(before.state_stored)
            del before.__dict__["state_stored"]
            usage.open_flows -= before.status not in TERMINAL
