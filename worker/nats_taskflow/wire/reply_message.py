"""Open a message on a reply subject: its body without the envelope, and its ids.

See CONTRACT 5.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

import msgspec

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow.ids import bad_id
from nats_taskflow.wire import json_pointer, limits
from nats_taskflow.wire.envelope import open_value
from nats_taskflow.wire.headers import MSG_ID, Headers, find
from nats_taskflow.wire.requests import UUID

_FINE_ID = re.compile(r"\A[ -~]{1,256}\Z")  # nearly every id: a fast path


class OpenedReply(msgspec.Struct):
    """A reply while it is read.

    `value`: the body without its envelope; UNSET where it is not JSON.
    """

    subject: str
    headers: Headers
    body: bytes
    value: Any
    envelope_id: str | None
    flaw: str = ""

    def field(self, name: str) -> Any:
        """Return a field of the body, None where there is none."""
        return self.value.get(name) if isinstance(self.value, dict) else None


def open_reply(subject: str, headers: Headers, body: bytes) -> OpenedReply:
    """Decode the body, and take its envelope off.

    The bytes of a bare responder need not be JSON. Raises as `limits.decode_any` does.
    """
    try:
        value, envelope_id = open_value(body)
    except limits.NotJson as flaw:
        return OpenedReply(subject, headers, body, msgspec.UNSET, None, f"; {flaw.message}")
    return OpenedReply(subject, headers, body, value, envelope_id)


def event_id_of(message: OpenedReply, name: str) -> str:
    """Return the id by which a repeat is recognised (SEMANTICS R5).

    It is `name` where there is none. Raises `InvalidRequest` for a bad one.
    """
    event_id = find(message.headers, MSG_ID)
    if event_id is None:
        event_id = message.field("event_id")
    if not isinstance(event_id, str):
        event_id = message.envelope_id
    return name if event_id is None else check_id(event_id, "event_id")


def value_of_bytes(body: bytes) -> dict[str, str]:
    """Return bytes that are no JSON as a JSON object."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}


def flow_named_by(message: OpenedReply) -> str | None:
    """Return the flow that the reply is for, where it says so (SEMANTICS R2).

    Only a body with a correlation id means our flows: a delegate's own result may have a `flow_id` of its own.
    """
    flow_id = message.field("flow_id")
    is_ours = isinstance(flow_id, str) and UUID.match(flow_id) and isinstance(message.field("correlation_id"), str)
    return flow_id.lower() if is_ours and isinstance(flow_id, str) else None


def check_id(value: Any, name: str) -> str:
    """Return the id.

    Raises `InvalidRequest`: ids are refused, never trimmed (SEMANTICS R1).
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text", path=json_pointer.spell(name))
    if _FINE_ID.match(value):
        return value
    why = bad_id(value) or (None if value == encodable(value) else "is not valid Unicode")
    if why:
        raise InvalidRequest(f"{name} {why}", path=json_pointer.spell(name))
    return value


def encodable(text: str) -> str:
    """Return header text without lone surrogates.

    Clients decode stray bytes of a header to them, and UTF-8 has none.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
