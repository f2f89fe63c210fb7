"""Read the requests of delegates and write their answers (CONTRACT 5)."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from typing import Any

import msgspec

from nats_taskflow.client.transport import TransportMessage
from nats_taskflow.errors import FlowError
from nats_taskflow.wire import limits
from nats_taskflow.wire.headers import (
    AGENT,
    CORRELATION_ID,
    DEADLINE,
    FLOW_ID,
    HOPS,
    MSG_ID,
    REPLY_SUBJECT,
    SERVICE_ERROR,
    SERVICE_ERROR_CODE,
    TRACEPARENT,
    find,
    one_line,
    weight,
)

_ROOM = 512  # for the message id, which is added when it is sent


class DelegateError(Exception):
    """What a handler raises to answer with an error.

    `code` is text of digits, HTTP-like (`"422"`), `message` one sentence. The flow that asked resumes with
    `{"error": {"code", "message"}}`.
    """

    def __init__(self, code: str | int, message: str) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message


class DelegateCall(msgspec.Struct, frozen=True, kw_only=True):
    """A request, as a handler gets it.

    `payload`: the JSON value; text for a body that is not JSON, `{"base64": …}` for one that is no text either. `id` recognises a repeat
    (None: the caller gave none), `deadline` is when an answer comes too late (None: never). `agent`, `flow_id`, `correlation_id` and
    `hops` are there where a flow asks: `agent` is whose flow it is, as the worker says; believe it where only the worker may publish on
    the subject. Pass `hops` on, as header `Taskflow-Hops`, when the delegate delegates. `headers` has all headers.
    """

    subject: str
    payload: Any
    headers: dict[str, str]
    id: str | None = None
    agent: str | None = None
    flow_id: str | None = None
    correlation_id: str | None = None
    deadline: datetime | None = None
    hops: int = 0
    trace: str | None = None


class DelegateAnswer(msgspec.Struct, frozen=True):
    """What a delegate sends back."""

    body: bytes
    headers: dict[str, str]


def read_request(message: TransportMessage) -> DelegateCall:
    """Read a request. Headers that cannot be read count as not there."""
    headers = dict(message.headers)
    hops = find(headers, HOPS) or "0"
    return DelegateCall(
        subject=message.subject,
        payload=_payload(message.body),
        headers=headers,
        id=find(headers, MSG_ID),
        agent=find(headers, AGENT),
        flow_id=find(headers, FLOW_ID),
        correlation_id=find(headers, CORRELATION_ID),
        deadline=_instant(find(headers, DEADLINE)),
        hops=int(hops) if hops.isascii() and hops.isdigit() else 0,
        trace=find(headers, TRACEPARENT),
    )


def reply_subject(message: TransportMessage) -> str:
    """Return where the answer goes, or "".

    That is the reply subject, or the subject in a header where the request came through a stream.
    """
    return message.reply or find(message.headers, REPLY_SUBJECT) or ""


def write_answer(value: Any, request: DelegateCall) -> DelegateAnswer:
    """Encode an answer: bytes as they are, anything else as JSON.

    Raises `TypeError` for what JSON does not have.
    """
    body = bytes(value) if isinstance(value, bytes | bytearray) else msgspec.json.encode(value)
    return DelegateAnswer(body, _reply_headers(request))


def write_error(error: DelegateError, request: DelegateCall) -> DelegateAnswer:
    """Encode an error as NATS micro services do (ADR-32).

    The body is the payload that the flow will see.
    """
    headers = {SERVICE_ERROR: one_line(error.message), SERVICE_ERROR_CODE: one_line(error.code)}
    body = msgspec.json.encode({"error": {"code": error.code, "message": error.message}})
    return DelegateAnswer(body, {**_reply_headers(request), **headers})


def answer_flaw(answer: DelegateAnswer, request: DelegateCall, max_payload: int) -> str:
    """Return why an answer cannot reach the caller, or "".

    The worker dead-letters a reply beyond its limits, and this process would never know.
    """
    size = len(answer.body) + weight(answer.headers) + _ROOM
    if size > max_payload:
        return f"the answer has {len(answer.body)} bytes; the broker takes {max_payload}"
    try:
        if request.flow_id is not None:
            limits.decode_any(answer.body)
    except limits.NotJson:
        return ""  # a bare responder's text or bytes, which the flow gets as such
    except FlowError as refused:
        return f"the flow cannot take the answer: {refused.message}"
    return ""


def _reply_headers(request: DelegateCall) -> dict[str, str]:
    """Return the headers of the answer.

    With the correlation id it finds the flow on every reply topic; `traceparent` continues the trace.
    """
    headers = {} if request.correlation_id is None else {CORRELATION_ID: request.correlation_id}
    return headers if request.trace is None else {**headers, TRACEPARENT: request.trace}


def _payload(body: bytes) -> Any:
    """Decode a body: JSON, else text, else base64."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}


def _instant(text: str | None) -> datetime | None:
    """Read an RFC 3339 time; None for anything else."""
    try:
        at = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return at if at is not None and at.tzinfo is not None else None
