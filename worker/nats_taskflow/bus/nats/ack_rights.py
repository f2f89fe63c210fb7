"""Watch for settlements that the credentials do not permit.

The server objects to each settlement, and does not say when they are allowed again.
"""

from __future__ import annotations

from nats_taskflow.bus.nats.connection import ApiDenied, NatsConnection
from nats_taskflow.bus.nats.pull_protocol import ACK, consumer_at
from nats_taskflow.bus.port import ConsumerSpec


class AckRights:
    """Remembers whose settlements the server has denied, until it takes one again."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._denied: set[tuple[str, ...]] = set()
        connection.on_denied.append(self._deny)

    def _deny(self, subject: str) -> None:
        """Note a denied subject; nats-py gives it in lower case."""
        if subject.startswith(ACK.decode().lower()):
            fields = subject.split(".")
            at = consumer_at(fields)
            self._denied.add(tuple(fields[at : at + 2]))

    async def objections(self, source: ConsumerSpec) -> list[str]:
        """Return an objection while the server refuses settlements of the source.

        Raises `ApiTimeout`.
        """
        names = (source.stream.lower(), source.consumer.lower())
        if names not in self._denied:
            return []
        subject = f"{ACK.decode()}{source.stream}.{source.consumer}."
        try:
            # In-progress for the stream's first message changes nothing, and is answered.
            await self._connection.ask(f"{subject}1.1.1.0.0", b"+WPI")
        except ApiDenied:
            return [f"the credentials may not publish on {subject}>: what is done is not acknowledged, and is delivered again; grant it"]
        self._denied.discard(names)
        return []
