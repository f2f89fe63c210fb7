"""Check that the counts behind the quotas agree with the flows' rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import TERMINAL
from nats_taskflow.store.invariants.evidence import Evidence


def adds_up(evidence: Evidence) -> Iterator[str]:
    """I-16: the counts behind the quotas of each agent say what its flows' rows say."""
    open_flows: Counter[str] = Counter()
    state_bytes: Counter[str] = Counter()
    query = "SELECT owner_session_key, status, count(*), sum(length(CAST(state_json AS BLOB))) FROM flows GROUP BY 1, 2"
    for owner, status, count, size in evidence.rows(query):
        agent = agent_of(owner)
        if agent is not None:
            open_flows[agent] += 0 if status in TERMINAL else count
            state_bytes[agent] += size
    counted = {agent: usage for agent, *usage in evidence.rows("SELECT agent, open_flows, state_bytes FROM usage")}
    for agent in sorted(counted.keys() | state_bytes.keys()):
        has = (open_flows[agent], state_bytes[agent])
        for what, says, there in zip(("open flows", "bytes of states"), counted.get(agent, (0, 0)), has, strict=True):
            if says != there:
                yield f"of the {what} of agent {agent} {says} are counted, there are {there}"
