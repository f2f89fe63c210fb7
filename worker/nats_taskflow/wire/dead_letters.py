"""Encode a dead letter: a message that could not be used.

It has all that it takes to understand and replay the message (CONTRACT 1).
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Protocol

import msgspec

from nats_taskflow.wire.events import EventMessage
from nats_taskflow.wire.headers import (
    MESSAGE,
    MSG_ID,
    ORIGIN_HEADERS,
    ORIGIN_SEQUENCE,
    ORIGIN_STREAM,
    ORIGIN_SUBJECT,
    REASON,
    SHA256,
    TRUNCATED,
    UNREAD,
    Headers,
    one_line,
    weight,
)
from nats_taskflow.wire.subjects import Subjects, is_token

MAX_HEADERS = 16 * 1024
_SPARE = 256  # bytes for `Taskflow-Truncated` and for what a broker adds


class DeadLetterMessage(Protocol):
    """A message that could not be used, as it came (the store's `DeadLetter`).

    `n` is the number of its row: published again, it has the same id.
    """

    @property
    def n(self) -> int:
        """Its number among the dead letters."""
        ...

    @property
    def reason(self) -> str:
        """Why it could not be used, as a subject token."""
        ...

    @property
    def message(self) -> str:
        """Why it could not be used, as a sentence."""
        ...

    @property
    def subject(self) -> str:
        """Where it was published."""
        ...

    @property
    def stream(self) -> str:
        """The stream it came from; empty when it came from none."""
        ...

    @property
    def seq(self) -> int | None:
        """Its sequence in the stream."""
        ...

    @property
    def headers(self) -> Headers:
        """Its headers."""
        ...

    @property
    def body(self) -> bytes:
        """Its body, whole."""
        ...


def dead_letter_message(letter: DeadLetterMessage, subjects: Subjects, *, max_bytes: int) -> EventMessage:
    """Return the message that publishes a dead letter.

    It has the raw body, and headers that say what is known of it. Headers and body together stay below `max_bytes`, the broker's
    max_payload: over it the client closes for good. Where something is cut, `Taskflow-Truncated: true` says so; the digest is always that
    of the whole body.
    """
    origin, cut = _headers_text(letter.headers, min(MAX_HEADERS, max_bytes // 4))
    headers = {
        MSG_ID: f"dlq:{letter.n}",
        REASON: one_line(letter.reason),
        MESSAGE: one_line(letter.message),
        ORIGIN_SUBJECT: one_line(letter.subject, 1024),
        ORIGIN_STREAM: one_line(letter.stream),
        ORIGIN_HEADERS: origin,
        SHA256: sha256(letter.body).hexdigest(),
    }
    if letter.seq is not None:
        headers[ORIGIN_SEQUENCE] = str(letter.seq)
    room = max(max_bytes - weight(headers) - _SPARE, 0)
    if cut or len(letter.body) > room:
        headers[TRUNCATED] = "true"
    reason = letter.reason if is_token(letter.reason) else "other"
    return EventMessage(subjects.dead_letter(reason), letter.body[:room], headers)


def read_headers(text: str) -> dict[str, str]:
    """Return the original headers that `Taskflow-Headers` holds.

    Raises `ValueError` when it holds none.
    """
    headers: dict[str, str] = msgspec.json.decode(text, type=dict[str, str])
    return headers


def _headers_text(headers: Headers, room: int) -> tuple[str, bool]:
    """Write headers as one line of ASCII JSON; return it, and whether it was cut.

    Headers at the end that do not fit are left out.
    """
    fitting: dict[str, str] = {}
    length = 2
    for name, value in headers.items():
        if name == UNREAD:
            continue
        length += len(json.dumps(name)) + len(json.dumps(value)) + 2
        if length > room:
            return json.dumps(fitting, separators=(",", ":")), True
        fitting[name] = value
    return json.dumps(fitting, separators=(",", ":")), UNREAD in headers
