"""Send core requests without awaiting their answers, which a stream captures.

What is awaited is the server's notice that nobody listens: a status message (503) on the reply subject. No stream captures it; only a
subscription of the connection that published gets it. So each batch subscribes to its reply subjects for one round trip, at whose end all
notices have come. Across a supercluster, gateways may accept a message optimistically: then there is no notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_taskflow.bus.message_limits import request_objection
from nats_taskflow.bus.nats.connection import NatsConnection
from nats_taskflow.bus.port import NO_RESPONDERS, NOT_CONNECTED, ForwardedRequest
from nats_taskflow.tasks import Errands
from nats_taskflow.wire.headers import SUBJECT

LOST = "connection lost: may or may not have been sent"
_NO_RESPONDERS_STATUS = "503"


class RequestSender:
    """Sends batches one after another.

    Of two subscriptions on one connection, only one would get the notice.
    """

    def __init__(self, connection: NatsConnection, *, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._batch: _Batch | None = None
        self._errands = Errands()
        self._log = structlog.get_logger()
        connection.on_down.append(self._on_down)
        connection.on_denied.append(self._on_denied)

    async def send(self, messages: Sequence[ForwardedRequest]) -> list[str | None]:
        """Send the messages in order; see `Bus.send`."""
        batch = _Batch(self._connection, messages)
        if not batch.is_sendable:
            return batch.outcomes(self._timeout)
        # A task, not a timeout around it: nats-py swallows cancellations in places, and no subscription must stay behind.
        task = self._errands.start(self._run(batch), "bus-send")
        try:
            await asyncio.wait({task, batch.dropped}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            return batch.outcomes(self._timeout)
        finally:
            batch.over = True
            task.cancel()

    async def _run(self, batch: _Batch) -> None:
        """Run a batch in its turn; a failure shows in its outcomes."""
        async with self._turn:
            self._batch = batch
            try:
                await batch.run()
            except Exception as error:  # noqa: BLE001  nats-py raises what it likes on a connection that is about to go
                self._log.debug("bus.send_failed", reason=repr(error))
            finally:
                self._batch = None

    def _on_down(self) -> None:
        if self._batch is not None and not self._batch.dropped.done():
            self._batch.dropped.set_result(None)

    def _on_denied(self, subject: str) -> None:
        # `subject` is in lower case: the credentials do not cover it.
        if self._batch is not None:
            self._batch.deny(subject)


class _Batch:
    """One batch of requests.

    `dropped` resolves when the connection is lost; `over`: nobody waits for it any more.
    """

    def __init__(self, connection: NatsConnection, messages: Sequence[ForwardedRequest]) -> None:
        self.dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = False
        self._connection = connection
        self._client = connection.client
        self._messages = messages
        refusals = ((number, request_objection(message, connection.max_payload)) for number, message in enumerate(messages))
        self._refused = {number: refusal for number, refusal in refusals if refusal is not None}
        self._written: set[int] = set()
        self._arrived = False
        self._replies: dict[str, Subscription] = {}
        self._log = structlog.get_logger()

    @property
    def is_sendable(self) -> bool:
        """Whether there is a connection, and a message to send on it."""
        return self._connection.connected and len(self._refused) < len(self._messages)

    async def run(self) -> None:
        """Subscribe, publish, wait for a round trip, collect the notices.

        Raises what nats-py raises.
        """
        try:
            await self._subscribe()
            await self._publish()
            if await self._round_trip():
                await self._collect()
                self._arrived = True
        finally:
            await self._unsubscribe()

    def deny(self, subject: str) -> None:
        """Refuse the messages on a subject (in lower case) that is not permitted.

        They may not be published on it, or no notice could come on it.
        """
        for number in self._written:
            message = self._messages[number]
            if message.subject.lower() == subject:
                self._refused[number] = f"the credentials may not publish on {message.subject}"
            elif message.reply is not None and message.reply.lower() == subject:
                # It does not count as sent: the promise is at least once, and nobody may have been there.
                self._refused[number] = (
                    f"the credentials may not subscribe to {message.reply}, so nobody knows who listens: may or may not have been sent"
                )

    def outcomes(self, waited: float) -> list[str | None]:
        """Return for each message why it was not sent within `waited` seconds, or None."""
        gone = self.dropped.done() or not self._connection.connected
        unwritten = NOT_CONNECTED if gone else f"not sent within {waited:g} s"
        unanswered = LOST if gone else f"no word from the broker within {waited:g} s: may or may not have been sent"
        sent = None if self._arrived else unanswered
        return [self._refused.get(number, sent if number in self._written else unwritten) for number in range(len(self._messages))]

    def _stopped(self) -> bool:
        # nats-py would buffer what is written now, and send it after the reconnect.
        return self.over or self.dropped.done() or not self._connection.connected

    async def _subscribe(self) -> None:
        """Subscribe to each reply subject."""
        for number, message in enumerate(self._messages):
            reply = message.reply
            if reply is None or reply in self._replies or number in self._refused:
                continue
            if self._stopped():
                return
            # No limits: fast answers would be logged as a slow consumer's. They are dropped with the subscription.
            self._replies[reply] = await self._client.subscribe(reply, pending_msgs_limit=0, pending_bytes_limit=0)

    async def _publish(self) -> None:
        """Write the messages in order."""
        # Nothing is awaited between the check of the connection and nats-py's buffer.
        for number, message in enumerate(self._messages):
            if number in self._refused:
                continue
            if self._stopped():
                return
            self._written.add(number)
            try:
                await self._client.publish(message.subject, message.body, reply=message.reply or "", headers=dict(message.headers) or None)
            except Exception as error:  # noqa: BLE001  one message that the client refuses must not stop the others
                self._written.discard(number)
                self._refused[number] = f"not sent: {error!r}"

    async def _round_trip(self) -> bool:
        """Wait until the server has read everything, and we have read its notices.

        Returns False when the connection was lost meanwhile.
        """
        # Not `flush`: it returns at once when nats-py's reading has ended. Twice, for the reason that `NatsConnection.flush` gives.
        for _ in range(2):
            if self._stopped():
                return False  # a PING now would wait for a PONG in vain
            await self._client.rtt()
        return not self._stopped()

    async def _collect(self) -> None:
        """Refuse the messages that nobody listens for; the answers are the stream's."""
        for reply, subscription in self._replies.items():
            for _ in range(subscription.pending_msgs):
                status = await subscription.next_msg()
                if not status.data and status.headers and status.headers.get("Status") == _NO_RESPONDERS_STATUS:
                    self._nobody_listens(reply, status)

    def _nobody_listens(self, reply: str, status: Msg) -> None:
        """Refuse the message of a 503."""
        # Older servers do not name its subject, and a mapping may have changed it.
        sent = [number for number in self._written if self._messages[number].reply == reply]
        subject = (status.headers or {}).get(SUBJECT)
        for number in [number for number in sent if self._messages[number].subject == subject] or sent:
            self._refused.setdefault(number, NO_RESPONDERS)

    async def _unsubscribe(self) -> None:
        """Unsubscribe, even without a connection."""
        # nats-py would renew the subscriptions with the next one.
        for subscription in self._replies.values():
            try:
                await subscription.unsubscribe()
            except Exception as error:  # noqa: BLE001  a closed connection has no subscriptions
                self._log.debug("bus.unsubscribe_failed", reason=repr(error))
