"""Say where a flow is in the words of other protocols: MCP tasks, A2A 1.0, the Synadia Agent Protocol 0.3. One table; nowhere else."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from worker.flow.lifecycle import FlowStatus

McpTask = Literal["working", "input_required", "completed", "failed", "cancelled"]
A2aTask = Literal[
    "TASK_STATE_SUBMITTED",
    "TASK_STATE_WORKING",
    "TASK_STATE_INPUT_REQUIRED",
    "TASK_STATE_COMPLETED",
    "TASK_STATE_FAILED",
    "TASK_STATE_CANCELED",  # one L: A2A spells it so
]
SynadiaSign = Literal["status", "query", "terminator", "Nats-Service-Error-Code"]


class Names(msgspec.Struct, frozen=True):
    """What a state is called elsewhere.

    `mcp`: the extension `io.modelcontextprotocol/tasks`. `a2a`: A2A's task state. `synadia`: what an agent of that protocol would send
    then: a `status` or `query` chunk, the `terminator` (no body, no headers), the header of an error, or None for nothing.
    """

    mcp: McpTask
    a2a: A2aTask
    synadia: SynadiaSign | None


NEEDS_SOMEBODY = Names("input_required", "TASK_STATE_INPUT_REQUIRED", "query")
"""A flow that waits for a person (`manual`)."""

NAMES: dict[FlowStatus, Names] = {
    FlowStatus.CREATED: Names("working", "TASK_STATE_SUBMITTED", None),
    FlowStatus.RUNNING: Names("working", "TASK_STATE_WORKING", "status"),
    FlowStatus.WAITING: Names("working", "TASK_STATE_WORKING", None),
    FlowStatus.FINISHED: Names("completed", "TASK_STATE_COMPLETED", "terminator"),
    FlowStatus.FAILED: Names("failed", "TASK_STATE_FAILED", "Nats-Service-Error-Code"),
    FlowStatus.CANCELLED: Names("cancelled", "TASK_STATE_CANCELED", None),
}


def names_of(status: FlowStatus, wait: dict[str, Any] | None) -> Names:
    """Return what the state of a flow is called elsewhere."""
    if status is FlowStatus.WAITING and wait is not None and wait.get("kind") == "manual":
        return NEEDS_SOMEBODY
    return NAMES[status]


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
