"""Spell and read JetStream's pull protocol (ADR-13).

Requests, the status messages that answer them, deliveries and settlements: the same for the worker's pull and the agents' reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

import msgspec

from nats_taskflow.bus.nats.frames import DESCRIPTION, STATUS, read_headers
from nats_taskflow.bus.port import NO_HEADERS, Ack, Delivery, InProgress, Nak, Settlement, Term

ACK = b"$JS.ACK."
"""The beginning of every delivery's reply subject. Only this tells it from a status: a stored message may have any header."""
_NS = 1_000_000_000
_REASON_LENGTH = 200


class PullStatus(Enum):
    """What a status message says about a pull request."""

    ALIVE = auto()
    """The server still has it."""
    COMPLETED = auto()
    """Its batch was delivered in full."""
    EXPIRED = auto()
    """It ended by itself, with part of its batch undelivered."""
    TOO_LARGE = auto()
    """It ended because the next message has more bytes than it asks for."""
    MISSING = auto()
    """The consumer is gone, or JetStream is still starting."""
    REFUSED = auto()
    """The server does not take it as it is."""


def next_subject(stream: str, consumer: str) -> str:
    """Return the subject of pull requests, as permissions name it."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def pull_request(batch: int, *, expires: float, heartbeat: float, max_bytes: int | None = None) -> bytes:
    """Return the body of a pull request.

    Times are seconds. Without `max_bytes`, bytes are not bounded.
    """
    body = {"batch": batch, "expires": int(expires * _NS), "idle_heartbeat": int(heartbeat * _NS)}
    return msgspec.json.encode(body if max_bytes is None else {**body, "max_bytes": max_bytes})


def read_status(headers: Mapping[str, str]) -> PullStatus:
    """Return what a status message means."""
    status, reason = headers.get(STATUS, ""), headers.get(DESCRIPTION, "")
    if status == "100":
        return PullStatus.ALIVE
    if reason == "Batch Completed":
        return PullStatus.COMPLETED
    if status in ("404", "408"):
        return PullStatus.EXPIRED
    if status == "409" and reason.startswith("Message Size Exceeds"):
        return PullStatus.TOO_LARGE
    return PullStatus.MISSING if status == "503" or (status == "409" and "Deleted" in reason) else PullStatus.REFUSED


def request_number(subject: bytes) -> int:
    """Return the number of the pull request that a status message is for.

    It is in the message's subject. 0: there is none.
    """
    number = subject.rpartition(b".")[2]
    return int(number) if number.isdigit() else 0


def read_delivery(subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> Delivery:
    """Read a delivery.

    Its ack subject is `$JS.ACK.[domain.account.]stream.consumer.attempt.seq.cseq.ns.pending[.random]`. Bytes that are not UTF-8 become
    U+FFFD, which no subject of ours contains.
    """
    token = reply.decode("utf-8", "replace")
    fields = token.split(".")
    at = consumer_at(fields)
    return Delivery(
        subject=subject.decode("utf-8", "replace"),
        headers=read_headers(headers) if headers else NO_HEADERS,
        body=body,
        size=len(body) + len(headers or b""),
        stream=fields[at],
        attempt=int(fields[at + 2]),
        seq=int(fields[at + 3]),
        arrived_us=int(fields[at + 5]) // 1000,
        pending=int(fields[at + 6]),
        token=token,
    )


def consumer_at(fields: list[str]) -> int:
    """Return the place of the stream's name in an ack subject. The consumer is next.

    A domain adds two tokens before them, and one at the end.
    """
    return 2 if len(fields) == 9 else 4  # noqa: PLR2004  tokens of the short form


def encode_settlement(settlement: Settlement) -> bytes:
    """Return a settlement in the broker's words."""
    match settlement:
        case Ack():
            return b"+ACK"
        case Nak(delay=delay):
            return b'-NAK {"delay":%d}' % max(0, int(delay * _NS))
        case Term(reason=reason):
            # nats-py's own `term` takes no reason.
            return f"+TERM {' '.join(reason.split())[:_REASON_LENGTH]}".encode(errors="replace")
        case InProgress():
            return b"+WPI"
