"""Read what a delivery's ack subject and a pull request's status subject say."""

from __future__ import annotations

from nats.aio.msg import Msg

from worker.bus.base import NO_HEADERS, Delivery

ACK = "$JS.ACK."


def delivery_of(msg: Msg) -> Delivery:
    """Read a delivery's facts from its ack subject: `$JS.ACK.[domain.account.]stream.consumer.attempt.seq.cseq.ns.pending[.random]`."""
    fields = msg.reply.split(".")
    at = 2 if len(fields) == 9 else 4  # noqa: PLR2004  the short form has nine tokens, the form with a domain has two more and a random one
    return Delivery(
        subject=msg.subject,
        headers=msg.headers or NO_HEADERS,
        body=msg.data,
        stream=fields[at],
        attempt=int(fields[at + 2]),
        seq=int(fields[at + 3]),
        arrived_us=int(fields[at + 5]) // 1000,
        pending=int(fields[at + 6]),
        token=msg.reply,
    )


def request_of(subject: str) -> int:
    """Read the pull request's number from the subject of a status message; 0 where there is none."""
    token = subject.rpartition(".")[2]
    return int(token) if token.isascii() and token.isdigit() else 0
