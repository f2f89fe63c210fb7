"""Derive bounds from the broker's `max_payload`.

Nothing may come into being that could not be sent.
"""

from __future__ import annotations

import msgspec

from nats_taskflow.flow.policy import Policy

WHOLE = 512 * 1024
"""A broker with this `max_payload` carries everything that the contract allows."""
LEAST = 64 * 1024
"""With less, a flow's own names could fill a message."""
AROUND = 16 * 1024
"""The most that an event, answer or request needs beside what a caller brings: names, ids, subject and headers."""
_PAGE = 512 * 1024


def lower(policy: Policy, max_payload: int) -> Policy:
    """Return the policy with lower bounds, where the broker carries less.

    They are what an event or a request to a delegate can carry.
    """
    room = max_payload - AROUND
    return msgspec.structs.replace(policy, max_event_bytes=room, max_state_bytes=min(policy.max_state_bytes, room))


def page_bytes(max_payload: int) -> int:
    """Return how many bytes a page of an answer may have.

    One more item of the largest size still fits.
    """
    return min(_PAGE, max_payload // 2)


def remark(max_payload: int) -> str:
    """Write a sentence about what a small `max_payload` lowers.

    It is empty where nothing is lowered.
    """
    if max_payload >= WHOLE:
        return ""
    room = max_payload - AROUND
    return (
        f"the broker carries messages of {max_payload:,} bytes: patches, states and payloads over {room:,} bytes are refused (too_large), "
        f"an answer that would be larger comes without its state; a max_payload of {WHOLE:,} bytes or more lowers nothing"
    )


def objection(max_payload: int) -> str | None:
    """Return a sentence about why the worker cannot run on this broker, or None."""
    if max_payload >= LEAST:
        return None
    return f"the broker carries messages of {max_payload:,} bytes only: set max_payload in its configuration to {LEAST:,} at least"
