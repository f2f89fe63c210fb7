"""Recognise messages that were taken in before (SEMANTICS R5, 6).

They are recognised by their place in the stream or by their id.
"""

from __future__ import annotations

from nats_taskflow.engine.submission import Submission, UnreadableMessage
from nats_taskflow.store.records import InboxRow, Loaded


def same_delivery(submission: Submission, loaded: Loaded) -> InboxRow | None:
    """Return the row of this very message, if it was taken from its place before.

    The sequence alone does not tell: in a stream that was made again, another message lies there. A message that is given up is not
    read again, so its place has to do. One that was given up then, and is read now, is known by its bytes.
    """
    rows = loaded.places.get((submission.source, submission.seq)) if submission.seq is not None else None
    if not rows:
        return None
    given_up = isinstance(submission.what, UnreadableMessage) and submission.what.reason == "poison"
    known = {submission.digest, submission.digest_unread}
    return next((row for row in rows if given_up or row.digest in known), None)


def same_identity(submission: Submission, loaded: Loaded) -> InboxRow | None:
    """Return the row of the first message with this id.

    Its digest tells a repeat from a conflict.
    """
    identity = submission.identity
    return loaded.inbox.get((identity.scope, identity.key)) if identity is not None else None


def shown_id(submission: Submission) -> str:
    """Return the id that a person would recognise: the last part of the key."""
    return submission.identity.key.rsplit("\n", 1)[-1] if submission.identity else ""
