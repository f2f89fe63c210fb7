"""Say whether a payload may satisfy a leaf: it fits the wait's `accept`, and what the wait has gathered stays within bounds."""

from __future__ import annotations

from typing import Any

import msgspec

from worker.flow.commands import Policy
from worker.flow.model import Flow
from worker.flow.waits import COMPOSITES, ExternalEvent, WaitCondition, leaf_at


def unfit(condition: WaitCondition, flow: Flow, leaf: int, payload: Any, policy: Policy) -> tuple[str, str] | None:
    """Return the dead letter's reason and sentence for a payload that must not satisfy the leaf, or None. The wait goes on."""
    part = leaf_at(condition, leaf)
    payload = None if payload is msgspec.UNSET else payload
    if isinstance(part, ExternalEvent) and part.accept is not None and policy.accepts is not None:
        flaw = policy.accepts(part.accept, payload)
        if flaw is not None:
            return flaw
    size = len(msgspec.json.encode(payload))
    gathered = size + len(msgspec.json.encode(flow.progress or {})) if isinstance(condition, COMPOSITES) else size
    limit = min(2 * policy.max_state_bytes if gathered > size else gathered, policy.max_event_bytes)
    if gathered > limit:
        return "too_large", f"the payloads of this wait would have {gathered} bytes together; the limit is {limit}"
    return None
