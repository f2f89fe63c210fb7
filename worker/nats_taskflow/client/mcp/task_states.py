"""Say where a flow is in the words of MCP tasks, and what it waits for in words. One table; nowhere else."""

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
"""What a state is called by the MCP extension `io.modelcontextprotocol/tasks`."""


def mcp_task(status: FlowStatus, wait: dict[str, Any] | None) -> McpTask:
    """Return what the state of a flow is called as a task: one that waits for a person needs input."""
    if status is FlowStatus.WAITING and wait is not None and wait.get("kind") == "manual":
        return "input_required"
    return MCP_TASK[status]


def waiting_for(wait: dict[str, Any] | None) -> str:
    """Say in words what a flow waits for, for the status message of a task: it goes on behind "waiting for"."""
    match wait:
        case {"kind": "timer", "at": at}:
            said = f"the time {at}"
        case {"kind": "external_event", "topic": topic, "correlation_id": correlation, **more}:
            asked = f" from {more['to']}" if "to" in more else ""
            said = f"a reply{asked} on topic {topic} with correlation id {correlation}"
        case {"kind": "manual", **more}:
            said = f"a person: {more['prompt']}" if more.get("prompt") else "a person"
        case {"kind": "flow", "flow_id": flow_id}:
            said = f"the end of flow {flow_id}"
        case {"kind": kind, "conditions": [*parts], **more}:
            many = {"any_of": "any", "all_of": "all"}.get(kind, str(more.get("count", "")))
            said = f"{many} of: {'; '.join(waiting_for(part) for part in parts)}"
        case _:
            return "something"
    until = (wait or {}).get("deadline")
    return f"{said} (until {until})" if until else said
