"""Tell whether a message is one that was taken in before (SEMANTICS R5, 6)."""

from __future__ import annotations

from collections.abc import Iterable

from nats_taskflow.engine.submission import Submission, UnreadableMessage
from nats_taskflow.store.records import InboxRow


def same_message(submission: Submission, rows: Iterable[InboxRow]) -> InboxRow | None:
    """Return the row of this very message, of those that were taken from its place, if it was taken in before.

    The sequence alone does not tell: where the stream was made again, another message lies there now. A message that is given up
    is not read again, so its place has to do; one that was given up then, and is read now, is known by its bytes.
    """
    if not rows:
        return None
    given_up = isinstance(submission.what, UnreadableMessage) and submission.what.reason == "poison"
    known = {submission.digest, submission.digest_unread}
    return next((row for row in rows if given_up or row.digest in known), None)


def shown_id(submission: Submission) -> str:
    """Return the id that a person would recognise: the last part of the key."""
    return submission.identity.key.rsplit("\n", 1)[-1] if submission.identity else ""
