"""Read what a delivery's ack subject and a pull request's status subject say, and know whose deliveries may not be settled."""

from __future__ import annotations

from nats_taskflow.bus.nats.connection import ApiDenied, NatsConnection
from nats_taskflow.bus.nats.frames import read_headers
from nats_taskflow.bus.port import NO_HEADERS, ConsumerSpec, Delivery

ACK = b"$JS.ACK."


def delivery_of(subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> Delivery:
    """Read a delivery's facts from its ack subject: `$JS.ACK.[domain.account.]stream.consumer.attempt.seq.cseq.ns.pending[.random]`.

    Bytes that are no text become U+FFFD, which no subject of ours contains.
    """
    token = reply.decode("utf-8", "replace")
    fields = token.split(".")
    at = _consumer_at(fields)
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


def request_of(subject: bytes) -> int:
    """Read the pull request's number from the subject of a status message; 0 where there is none."""
    number = subject.rpartition(b".")[2]
    return int(number) if number.isdigit() else 0


class AckRights:
    """Remember whose deliveries may not be settled. The server objects to each settlement, and does not say when they are allowed again."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._denied: set[tuple[str, ...]] = set()
        connection.on_denied.append(self._deny)

    def _deny(self, subject: str) -> None:
        """Note a subject that is denied, in lower case as nats-py gives it."""
        if subject.startswith(ACK.decode().lower()):
            fields = subject.split(".")
            at = _consumer_at(fields)
            self._denied.add(tuple(fields[at : at + 2]))

    async def objections(self, source: ConsumerSpec) -> list[str]:
        """Say that deliveries of the source may not be settled, for as long as the server objects. Raises `NoAnswer`."""
        named = (source.stream.lower(), source.consumer.lower())
        if named not in self._denied:
            return []
        subject = f"{ACK.decode()}{source.stream}.{source.consumer}."
        try:
            # The first message of the stream is still worked on: that changes nothing, and is answered.
            await self._connection.ask(f"{subject}1.1.1.0.0", b"+WPI")
        except ApiDenied:
            return [f"the credentials may not publish on {subject}>: what is done is not acknowledged, and is delivered again; grant it"]
        self._denied.discard(named)
        return []


def _consumer_at(fields: list[str]) -> int:
    """Return where the stream's and the consumer's name are: the form with a domain has two tokens more before them, and one at the end."""
    return 2 if len(fields) == 9 else 4  # noqa: PLR2004  tokens of the short form
