"""The headers of a request to a delegate.

They are the worker's own: no caller can set one (SEMANTICS 5). Everybody outside the core imports their names from `wire.headers`.
"""

from __future__ import annotations

from nats_taskflow.flow.ids import agent_of

CORRELATION_ID = "Correlation-Id"
FLOW_ID = "Taskflow-Flow-Id"
AGENT = "Taskflow-Agent"
DEADLINE = "Taskflow-Deadline"
HOPS = "Taskflow-Hops"
REPLY_SUBJECT = "Taskflow-Reply-Subject"
TRACEPARENT = "traceparent"


def asker(owner_session_key: str, flow_id: str, correlation_id: str, trace: str | None) -> dict[str, str]:
    """Return the headers that say who asks, and for what.

    A flow that no agent owns asks without an agent's name.
    """
    agent = agent_of(owner_session_key)
    whose = {} if agent is None else {AGENT: agent}
    traced = {} if trace is None else {TRACEPARENT: trace}
    return {CORRELATION_ID: correlation_id, FLOW_ID: flow_id, **whose, **traced}
