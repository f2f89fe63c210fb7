"""Map a flow to the states of MCP tasks, and what it waits for to words."""

from __future__ import annotations

from typing import Any, Literal

from nats_taskflow.flow.lifecycle import FlowStatus

McpTask = Literal["working", "input_required", "completed", "failed", "cancelled"]
MCP_TASK: dict[FlowStatus, McpTask] = {
    FlowStatus.CREATED: "working",
    FlowStatus.RUNNING: "working",
    FlowStatus.WAITING: "working",
    FlowStatus.FINISHED: "completed",
    FlowStatus.FAILED: "failed",
    FlowStatus.CANCELLED: "cancelled",
}
"""The states of the MCP extension `io.modelcontextprotocol/tasks`."""


def mcp_task(status: FlowStatus, wait: dict[str, Any] | None) -> McpTask:
    """Return a flow's state as a task: one that waits for a person needs input."""
    if status is FlowStatus.WAITING and wait is not None and wait.get("kind") == "manual":
        return "input_required"
    return MCP_TASK[status]


def waiting_for(wait: dict[str, Any] | None) -> str:
    """Put what a flow waits for into words that go on behind "waiting for"."""
    match wait:
        case {"kind": "timer", "at": at}:
            words = f"the time {at}"
        case {"kind": "external_event", "topic": topic, "correlation_id": correlation, **more}:
            sender = f" from {more['to']}" if "to" in more else ""
            words = f"a reply{sender} on topic {topic} with correlation id {correlation}"
        case {"kind": "manual", **more}:
            words = f"a person: {more['prompt']}" if more.get("prompt") else "a person"
        case {"kind": "flow", "flow_id": flow_id}:
            words = f"the end of flow {flow_id}"
        case {"kind": kind, "conditions": [*parts], **more}:
            many = {"any_of": "any", "all_of": "all"}.get(kind, str(more.get("count", "")))
            words = f"{many} of: {'; '.join(waiting_for(part) for part in parts)}"
        case _:
            return "something"
    until = (wait or {}).get("deadline")
    return f"{words} (until {until})" if until else words
