"""Write a reply (CONTRACT 5), or refuse one that the worker could not use.

It would become a dead letter, and the sender would not know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.client.clock import now
from nats_taskflow.client.encoding import encode_json
from nats_taskflow.client.errors import InvalidRequest
from nats_taskflow.flow.ids import bad_id
from nats_taskflow.text import shown
from nats_taskflow.wire import limits
from nats_taskflow.wire.reply_message import open_reply, value_of_bytes
from nats_taskflow.wire.subjects import Subjects, is_literal


def write_reply(subjects: Subjects, topic: str, correlation_id: str, payload: Any) -> tuple[str, bytes]:
    """Return the subject and the body of a reply.

    Raises `InvalidRequest`, `TooLarge` or `TooDeep`.
    """
    check_id("topic", topic)
    check_id("correlation_id", correlation_id)
    built_in = subjects.parse_reply(f"{topic}.x") is not None
    subject = f"{topic}.{correlation_id}" if built_in else topic
    if not is_literal(topic):
        raise InvalidRequest(f"the topic is no subject that can be published to: {shown(topic)}", path="/topic")
    if built_in and ("." in correlation_id or not is_literal(subject)):
        rule = f"on {topic} the correlation id is the last part of the subject, without dots, blanks and wildcards"
        raise InvalidRequest(f"{rule}, not {shown(correlation_id)}", path="/correlation_id")
    envelope = encode_json({"correlation_id": correlation_id, "payload": payload})
    body = msgspec.json.encode(payload) if built_in else envelope
    limits.decode_any(body)
    return subject, body


def put_in_envelope(subject: str, body: bytes, event_id: str) -> bytes:
    """Return the same reply with its id in the envelope instead of a header.

    The worker reads the id there, and the broker does not. A broker that calls a reply a repeat knows only its `Nats-Msg-Id`, which anybody
    may have used first. So the reply is sent once more like this: the worker knows whether it has had it (SEMANTICS R5), and nobody needs
    the right to read the stream.
    """
    opened = open_reply(subject, {}, body)
    value = value_of_bytes(body) if opened.value is msgspec.UNSET else opened.value
    return msgspec.json.encode({"id": event_id, "timestamp": now().isoformat(), "topic": subject, "source": "client", "payload": value})


def check_id(name: str, value: str) -> None:
    """Raise `InvalidRequest` for a value that cannot be an id.

    The worker would refuse it too, but later, and the sender would not know.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text, not {type(value).__name__}", path=f"/{name}")
    if flaw := bad_id(value):
        raise InvalidRequest(f"{name} {flaw}", path=f"/{name}")
