"""Open what arrived on a reply subject: the body without its envelope, and the ids that it carries (CONTRACT 5)."""

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

_FINE_ID = re.compile(r"\A[ -~]{1,256}\Z")  # nearly every id: spares looking at each character


class OpenedReply(msgspec.Struct):
    """A reply while it is being read. `value` is the body without its envelope; UNSET when it is not JSON."""

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
    """Decode the body and take its envelope off. A bare responder's bytes need not be JSON. Raises as `limits.decode_any` does."""
    try:
        value, envelope_id = open_value(body)
    except limits.NotJson as flaw:
        return OpenedReply(subject, headers, body, msgspec.UNSET, None, f"; {flaw.message}")
    return OpenedReply(subject, headers, body, value, envelope_id)


def event_id_of(message: OpenedReply, name: str) -> str:
    """Return what makes a repeat recognisable (SEMANTICS R5). Raises `InvalidRequest` for a bad id."""
    given = find(message.headers, MSG_ID)
    if given is None:
        given = message.field("event_id")
    if not isinstance(given, str):
        given = message.envelope_id
    return name if given is None else check_id(given, "event_id")


def value_of_bytes(body: bytes) -> dict[str, str]:
    """Return bytes that are no JSON as the JSON object they become."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}


def flow_named_by(message: OpenedReply) -> str | None:
    """Return the flow the reply says it is for (SEMANTICS R2).

    Only a body that names its correlation id speaks about our flows; a delegate's own result may have a `flow_id` of its own.
    """
    given = message.field("flow_id")
    named = isinstance(given, str) and UUID.match(given) and isinstance(message.field("correlation_id"), str)
    return given.lower() if named and isinstance(given, str) else None


def check_id(given: Any, name: str) -> str:
    """Return the id. Raises `InvalidRequest`: ids are refused, never trimmed (SEMANTICS R1)."""
    if not isinstance(given, str):
        raise InvalidRequest(f"{name} must be text", path=json_pointer.spell(name))
    if _FINE_ID.match(given):
        return given
    why = bad_id(given) or (None if given == encodable(given) else "is not valid Unicode")
    if why:
        raise InvalidRequest(f"{name} {why}", path=json_pointer.spell(name))
    return given


def encodable(text: str) -> str:
    """Return header text without what cannot be UTF-8: clients decode stray bytes of a header to lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
