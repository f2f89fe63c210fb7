"""Check that a flow whose row cannot be read is out of everybody's way."""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.store.invariants.evidence import FlowHistory


def stops_nobody(history: FlowHistory) -> Iterator[str]:
    """I-19: a flow that is set aside is not due any more.

    So it never stands before another flow's timer.
    """
    if history.set_aside and history.due_us is not None:
        yield f"{history.id} is set aside because it cannot be read, and would still be looked at each time something is due"
