"""Refuse what would be journaled, held or sent in too many bytes.

What is larger than the broker carries could never leave again.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nats_taskflow.errors import FlowError, TooLarge
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Reply, Stimulus

_ENCODER = msgspec.json.Encoder()


def within_size(stimulus: Stimulus, decision: Decision | FlowError, policy: Policy) -> Decision | FlowError:
    """Return the decision, or the refusal where it is too large.

    A reply that is too large becomes a dead letter, a command gets an error. Sizes are those of the JSON that is written: a number can be
    longer in it than in the request.
    """
    if isinstance(decision, FlowError):
        return decision
    size = max(_sizes(decision), default=0)
    if size <= policy.max_event_bytes:
        return decision
    message = f"what is to be kept and sent on would have {size} bytes; the broker carries {policy.max_event_bytes}"
    if isinstance(stimulus, Reply):
        return Decision(outcome="rejected", dead=("too_large", message))
    return TooLarge(message, size=size, limit=policy.max_event_bytes)


def _sizes(decision: Decision) -> Iterator[int]:
    """Yield the sizes of all that will be published, and of a reply to hold."""
    for change in decision.changes:
        for event in change.events:
            yield len(_ENCODER.encode(event.payload))
        for message in change.outgoing:
            yield len(message.body)
    if decision.hold is not None and decision.hold.payload is not msgspec.UNSET:
        yield len(_ENCODER.encode(decision.hold.payload))
