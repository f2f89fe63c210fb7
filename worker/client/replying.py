"""Write a reply (CONTRACT 5), and refuse one that the worker could not use: it would end as a dead letter, and nobody would be told."""

from __future__ import annotations

from typing import Any

import msgspec

from worker.client.errors import InvalidRequest
from worker.flow.identifiers import bad_id
from worker.wire import limits
from worker.wire.subjects import Subjects, is_literal


def written(subjects: Subjects, topic: str, correlation_id: str, payload: Any) -> tuple[str, bytes]:
    """Return the subject and the body of a reply. Raises `InvalidRequest`, `TooLarge` or `TooDeep`."""
    checked_id("topic", topic)
    checked_id("correlation_id", correlation_id)
    built_in = subjects.parse_reply(f"{topic}.x") is not None
    subject = f"{topic}.{correlation_id}" if built_in else topic
    if not is_literal(topic):
        raise InvalidRequest(f"the topic is no subject that can be published to: {limits.shown(topic)}", path="/topic")
    if built_in and ("." in correlation_id or not is_literal(subject)):
        said = f"on {topic} the correlation id is the last part of the subject, without dots, blanks and wildcards"
        raise InvalidRequest(f"{said}, not {limits.shown(correlation_id)}", path="/correlation_id")
    body = msgspec.json.encode(payload if built_in else {"correlation_id": correlation_id, "payload": payload})
    limits.decode_any(body)
    return subject, body


def checked_id(name: str, given: str) -> None:
    """Refuse what is no id: it would be refused by the worker, too, but later, and in silence."""
    if not isinstance(given, str):
        raise InvalidRequest(f"{name} must be text, not {type(given).__name__}", path=f"/{name}")
    if flaw := bad_id(given):
        raise InvalidRequest(f"{name} {flaw}", path=f"/{name}")
