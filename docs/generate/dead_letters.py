"""Describe dead letters: every reason, and what is published: docs/dead-letters.md."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generate.markdown import BY_HAND, code, page_of, table
from nats_taskflow.observe.metrics import DEAD_LETTER_REASONS
from nats_taskflow.wire import dead_letters

_HEAD = f"""# Dead letters

{BY_HAND}

A message that could not be used is kept: whole in the database, and published on `taskflow.dlq.<reason>`, where the stream `TASKFLOW_DLQ` keeps it for
`stream.event_max_age` (30 days). How to look at dead letters and replay them is in [Operating](operating.md#replay-dead-letters).

A *command* that could be read and is refused is not a dead letter: its sender is told why, and can ask again with `outcome`.

## Reasons
"""

_REASONS: dict[str, tuple[str, str]] = {
    "malformed": (
        "the body is not JSON, or not an object where one is needed",
        "Correct the sender. A replay becomes a dead letter again.",
    ),
    "too_large": (
        "the body is larger than 256 KiB, or the payloads of a combined wait would be",
        "Send less, or send where it can be found.",
    ),
    "too_deep": ("the JSON is nested deeper than 32 levels", "Correct the sender."),
    "unsupported_verb": (
        "the last token of the subject is not a verb",
        "Correct the subject; or start the newer worker that knows the verb, and replay.",
    ),
    "id_mismatch": ("header `Nats-Msg-Id` and `command_id` in the body differ, or neither is a valid id", "Correct the sender."),
    "topic_not_bound": ("the message came on a subject, or names a topic, that no reply binding covers", "Add the binding, then replay."),
    "invalid_request": ("a field is missing, unknown, or of the wrong type", "Correct the sender."),
    "no_correlation": (
        "the reply does not say which wait it answers",
        "Correct the delegate, or `correlation` of the binding; then replay.",
    ),
    "poison": (
        "the message was begun five times without an outcome: perhaps it kills the process",
        "Report it. Replay it only once you know why.",
    ),
    "conflict": (
        "the id was used before with another content; the first counts",
        "Find out who uses an id twice. A replay has a new id, so it would count.",
    ),
    "flow_mismatch": (
        "the reply names another flow than the one that waits for the pair",
        "Correct the delegate; or reply again without `flow_id`.",
    ),
    "expired": (
        "no flow waited for the reply within `engine.held_reply_ttl`, or it made room for others",
        "Find who should have waited: `taskflow who`. Then replay.",
    ),
    "not_accepted": ("the payload does not fit what the wait `accept`s; the wait goes on", "Answer again, with a payload that it accepts."),
}

_HEADERS: dict[str, str] = {
    "MSG_ID": "`dlq:<number>`; a repeat has the same",
    "REASON": "the reason",
    "MESSAGE": "what is wrong, in a sentence",
    "ORIGIN_SUBJECT": "where it was published",
    "ORIGIN_STREAM": "the stream that kept it; empty where none did",
    "ORIGIN_SEQUENCE": "its place there",
    "ORIGIN_HEADERS": "its headers, as JSON",
    "SHA256": "digest of the whole body",
    "TRUNCATED": "`true` where body or headers had to be cut to fit into a message; the database has all of it",
}


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines."""
    yield _HEAD
    yield from table(("reason", "why", "what to do"), ((code(reason), *_REASONS[reason]) for reason in DEAD_LETTER_REASONS))
    yield from ("## The message", "", "The body is the original one. What is known of it is in headers:", "")
    yield from table(("header", "what"), ((code(getattr(dead_letters, name)), what) for name, what in _HEADERS.items()))
