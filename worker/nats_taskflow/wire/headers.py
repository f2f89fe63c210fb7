"""The headers: their names, their look-up, and the checks of their values.

Names are found whatever their case, and any text can be made to fit into a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nats_taskflow.flow import request_headers

Headers = Mapping[str, str]

# Requests to delegates. The core writes these headers, and may not import this room: so they are spelled there, and found here.
CORRELATION_ID = request_headers.CORRELATION_ID
FLOW_ID = request_headers.FLOW_ID
AGENT = request_headers.AGENT
DEADLINE = request_headers.DEADLINE
HOPS = request_headers.HOPS
REPLY_SUBJECT = request_headers.REPLY_SUBJECT
TRACEPARENT = request_headers.TRACEPARENT

# Commands, replies and events.
REPLY_TO = "Taskflow-Reply-To"
EVENT_ID = "Event-Id"
CONTENT_TYPE = "content-type"

# Dead letters.
REASON = "Taskflow-Reason"
MESSAGE = "Taskflow-Message"
ORIGIN_SUBJECT = "Taskflow-Origin-Subject"
ORIGIN_STREAM = "Taskflow-Origin-Stream"
ORIGIN_SEQUENCE = "Taskflow-Origin-Sequence"
ORIGIN_HEADERS = "Taskflow-Headers"
SHA256 = "Taskflow-Sha256"
TRUNCATED = "Taskflow-Truncated"

# NATS' own: deduplication, micro services (ADR-32), atomic batches (ADR-50), a pull's status.
MSG_ID = "Nats-Msg-Id"
SERVICE_ERROR = "Nats-Service-Error"
SERVICE_ERROR_CODE = "Nats-Service-Error-Code"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"
PENDING_MESSAGES = "Nats-Pending-Messages"
SUBJECT = "Nats-Subject"

MOST_HEADERS = 1024
"""How many headers of a message are read. One may carry a hundred thousand: reading them would take seconds from everybody."""
UNREAD = "\n"
"""The name, which no header can have, of an entry with the bytes of all headers, where not all were read."""

_TRACEPARENT = re.compile(r"\A(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_INBOX = re.compile(r"\A(?=.{8,255}\Z)_INBOX(?:\.[!-)+\-/-=?-~]+)+\Z")  # printable ASCII but `*`, `.` and `>` in each token
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def find(headers: Headers, name: str) -> str | None:
    """Return the header's value, or None.

    The exact spelling wins; clients and proxies differ in case.
    """
    value = headers.get(name)
    if value is not None or not headers:
        return value
    length, folded = len(name), name.lower()
    for key, other in headers.items():
        if len(key) == length and key.lower() == folded:
            return other
    return None


def trace_of(headers: Headers) -> str | None:
    """Return the traceparent, or None where it is none.

    See W3C Trace Context, level 1. A bad one harms nobody but its sender.
    """
    value = find(headers, TRACEPARENT)
    return value if value is not None and len(value) == 55 and _TRACEPARENT.match(value) else None  # noqa: PLR2004 - its length


def inbox_of(headers: Headers) -> str | None:
    """Return the inbox for the outcome, or None.

    Only a literal `_INBOX.` subject counts: the worker may publish where its callers may not, and must not do it for them.
    """
    value = find(headers, REPLY_TO)
    return value if value is not None and _INBOX.match(value) else None


def hops_of(headers: Headers) -> int:
    """Return how many delegations led here; a bad value counts as 0.

    A delegate passes the header on from the request that it serves.
    """
    value = find(headers, HOPS) or ""
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 4 else 0  # noqa: PLR2004 - four digits


def one_line(text: str, limit: int = 256) -> str:
    """Return text as a header value: one line, at most `limit` characters.

    Control characters go.
    """
    clean = _UNPRINTABLE.sub(" ", text).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def weight(headers: Headers) -> int:
    """Return the bytes of the headers on the wire (NATS/1.0 block).

    They count towards `max_payload`.
    """
    total = 12 if headers else 0
    for name, value in headers.items():
        plain = name.isascii() and value.isascii()  # nearly always: nothing has to be encoded to be counted
        total += 4 + (len(name) + len(value) if plain else len(name.encode()) + len(value.encode()))
    return total
