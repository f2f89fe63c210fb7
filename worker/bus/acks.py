"""Read what a delivery's ack subject and a pull request's status subject say."""

from __future__ import annotations

from worker.bus.base import NO_HEADERS, Delivery
from worker.bus.frames import read_headers

ACK = b"$JS.ACK."


def delivery_of(subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> Delivery:
    """Read a delivery's facts from its ack subject: `$JS.ACK.[domain.account.]stream.consumer.attempt.seq.cseq.ns.pending[.random]`.

    Bytes that are no text become U+FFFD, which no subject of ours contains.
    """
    token = reply.decode("utf-8", "replace")
    fields = token.split(".")
    at = 2 if len(fields) == 9 else 4  # noqa: PLR2004  the short form has nine tokens, the form with a domain has two more and a random one
    return Delivery(
        subject=subject.decode("utf-8", "replace"),
        headers=read_headers(headers) if headers else NO_HEADERS,
        body=body,
        stream=fields[at],
        attempt=int(fields[at + 2]),
        seq=int(fields[at + 3]),
        arrived_us=int(fields[at + 5]) // 1000,
        pending=int(fields[at + 6]),
        token=token,
    )


def request_of(subject: bytes) -> int:
    """Read the pull request's number from the subject of a status message; 0 where there is none."""
    number = subject.rpartition(b".")[2]
    return int(number) if number.isdigit() else 0
