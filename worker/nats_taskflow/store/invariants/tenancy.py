"""Check that agents stay among themselves.

Nobody changes another one's flow, or waits in its name.
"""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.flow.ids import agent_of
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory
from nats_taskflow.wire.inbound import command_scope


def acts_on_its_own(history: FlowHistory) -> Iterator[str]:
    """I-29: an agent's command only changes, and only tells of, that agent's flows."""
    agent = agent_of(history.owner)
    for event in history.events:
        if event.actor.startswith("agent:") and event.actor != f"agent:{agent}":
            yield f"{event.actor} did {event.kind} at revision {event.revision} of {history.id}, which belongs to {history.owner}"
    for outcome in history.outcomes:
        if outcome.scope != command_scope(agent or ""):
            yield f"command {outcome.key} ({outcome.scope}) was told of {history.id}, which belongs to {history.owner}"


def waits_on_its_own_topic(evidence: Evidence) -> Iterator[str]:
    """I-29: only an agent's own flows wait on its built-in reply topic."""
    built_in = evidence.subjects.reply_topic("")
    query = """SELECT w.topic, f.id, f.owner_session_key FROM waiters AS w CROSS JOIN flows AS f
      WHERE substr(w.topic, 1, length(?1)) = ?1 AND f.n = w.flow"""
    for topic, flow_id, owner in evidence.rows(query, built_in):
        if topic != evidence.subjects.reply_topic(agent_of(owner) or ""):
            yield f"{flow_id} of {owner} waits on {topic}, which belongs to another agent"
