"""Say why the broker would not take a message.

Both adapters ask before they publish. nats-py looks at the payload only. The server answers headers + payload above its limit, or an
over-long subject, by closing the connection, after which the client never reconnects.
"""

from __future__ import annotations

from nats_taskflow.bus.port import ForwardedRequest
from nats_taskflow.wire.headers import Headers, weight
from nats_taskflow.wire.subjects import is_literal

# Subject and reply subject share one protocol line; a line above max_control_line (4096) makes the server hang up for good.
_MAX_LINE = 3800


def objection(subject: str, body: bytes, headers: Headers, max_payload: int) -> str | None:
    """Return why the broker would not take a message, or None."""
    try:
        if not is_literal(subject):
            return f"the subject {subject[:120]!r} cannot be published on"
        size = len(body)
        if headers:
            size += weight(headers)
        subject.encode()
    except UnicodeEncodeError:
        return "the subject or a header is not valid text"
    if size > max_payload:
        return f"the message has {size} bytes, the broker takes {max_payload}"
    return None


def request_objection(request: ForwardedRequest, max_payload: int) -> str | None:
    """Return why the broker would not take a request with its reply subject, or None."""
    refusal = objection(request.subject, request.body, request.headers, max_payload)
    if refusal is not None or request.reply is None:
        return refusal
    try:
        line = len(request.subject.encode()) + len(request.reply.encode())
    except UnicodeEncodeError:
        return "the reply subject is not valid text"
    if not is_literal(request.reply):
        return f"the reply subject {request.reply[:120]!r} cannot be published on"
    return f"subject and reply subject together have {line} bytes, too many for the broker" if line > _MAX_LINE else None
