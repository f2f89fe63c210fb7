"""Make dead letters of messages, and of held replies that no wait accepts."""

from __future__ import annotations

import msgspec

from nats_taskflow.engine.submission import Original, Submission
from nats_taskflow.flow.decision import RejectedHeld
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.units import Micros
from nats_taskflow.wire.headers import CORRELATION_ID, EVENT_ID


def letter_of(submission: Submission, raw: Original, reason: str, message: str, now: Micros) -> DeadLetter:
    """Return the dead letter of a whole message."""
    return DeadLetter(
        reason=reason,
        message=message,
        subject=raw.subject,
        stream=submission.source,
        seq=submission.seq,
        headers=dict(raw.headers),
        body=raw.body,
        at_us=now,
    )


def letter_of_held(rejected: RejectedHeld, now: Micros) -> DeadLetter:
    """Return the dead letter of a held reply."""
    held = rejected.held
    return DeadLetter(
        reason=rejected.reason,
        message=rejected.message,
        subject=held.topic,
        stream="",
        seq=None,
        headers={CORRELATION_ID: held.correlation_id, EVENT_ID: held.event_id},
        body=b"" if held.payload is msgspec.UNSET else msgspec.json.encode(held.payload),
        at_us=now,
    )
