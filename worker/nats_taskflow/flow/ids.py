"""Check topics, correlation ids and event ids, and read the agent out of an owner."""

from __future__ import annotations

import re

from nats_taskflow.flow.conditions import MAX_ID_LENGTH

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def bad_id(text: str) -> str | None:
    """Return what is wrong with a topic, correlation id or event id, or None.

    Ids are refused, never trimmed (SEMANTICS R1).
    """
    if not text:
        return "is empty"
    if len(text) > MAX_ID_LENGTH:
        return f"is longer than {MAX_ID_LENGTH} characters"
    if _CONTROL.search(text):
        return "has control characters"
    return None


def agent_of(owner_session_key: str) -> str | None:
    """Return the agent of `agent:<agent>:session:<session>`.

    Returns None for an owner that is no agent.
    """
    match owner_session_key.split(":", 3):
        case ["agent", agent, "session", _]:
            return agent
        case _:
            return None
