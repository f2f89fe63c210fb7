"""Check the payload for a leaf, and the size of the state after a command."""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.errors import FlowError, TooLarge
from nats_taskflow.flow.conditions import COMPOSITES, ExternalEvent, WaitCondition, leaf_at
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import AdvanceFlow, Command, FinishFlow, ResumeFlow

_BRINGS: dict[type[Command], str] = {AdvanceFlow: "patch", ResumeFlow: "patch", FinishFlow: "final_state"}


def payload_refusal(condition: WaitCondition, flow: Flow, leaf: int, payload: Any, policy: Policy) -> tuple[str, str] | None:
    """Return why a payload must not satisfy the leaf, or None.

    It is the dead letter's reason and sentence; the wait goes on then.
    """
    part = leaf_at(condition, leaf)
    payload = None if payload is msgspec.UNSET else payload
    if isinstance(part, ExternalEvent) and part.accept is not None and policy.accepts is not None:
        flaw = policy.accepts(part.accept, payload)
        if flaw is not None:
            return flaw
    size, limit = len(msgspec.json.encode(payload)), policy.max_event_bytes
    if isinstance(condition, COMPOSITES):
        size += len(msgspec.json.encode(flow.progress or {}))
        limit = min(limit, 2 * policy.max_state_bytes)
    if size > limit:
        return "too_large", f"the payloads of this wait would have {size} bytes together; the limit is {limit}"
    return None


def too_large(command: Command, before: Flow, after: Flow, policy: Policy) -> FlowError | None:
    """Refuse a command whose own field (`_BRINGS`) makes the state too large.

    A command that shrinks the state is never refused. What the worker writes itself (`resume_meta`, `failure`) is bounded, and must keep
    nobody from resuming or failing a flow.
    """
    field = _BRINGS.get(type(command))
    if field is None or getattr(command, field) is None or after.state_json is before.state_json:
        return None
    size = len(after.state_stored)
    if size <= policy.max_state_bytes or size <= len(before.state_stored):
        return None
    message = f"the state would have {size} bytes; the limit is {policy.max_state_bytes}"
    return TooLarge(message, path=f"/{field}", size=size, limit=policy.max_state_bytes)
