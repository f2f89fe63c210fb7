"""Send core requests whose answers come elsewhere: a stream captures the reply subjects, so no answer is waited for here.

What has to be waited for is the server's word that nobody listens. It is a status message (503) on the reply subject, which no stream
ever captures: only a subscription of the connection that published gets it. So each batch listens on its reply subjects for as long
as one round trip takes; what comes before the round trip's end is all that the server has to say about the batch.
Across a supercluster the gateways may take a message optimistically: nobody is told then that nobody listens.
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

LOST = "connection lost: may or may not have been sent"
_NO_RESPONDERS_STATUS = "503"


class RequestSender:
    """Send batches, one after the other: of two subscriptions of one connection only one would hear that nobody listens."""

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
        if not batch.worth_sending:
            return batch.verdicts(self._timeout)
        # A task of its own, and not a timeout around it: nats-py swallows cancellations in places, and subscriptions must not stay.
        task = self._errands.start(self._run(batch), "bus-send")
        try:
            await asyncio.wait({task, batch.dropped}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            return batch.verdicts(self._timeout)
        finally:
            batch.over = True
            task.cancel()

    async def _run(self, batch: _Batch) -> None:
        """Run one batch when it is its turn; what goes wrong shows in its verdicts."""
        async with self._turn:
            self._batch = batch
            try:
                await batch.run()
            except Exception as error:  # noqa: BLE001  nats-py raises what it likes on a connection that is about to go
                self._log.debug("bus.send_failed", reason=repr(error))
            finally:
                self._batch = None

    def _on_down(self) -> None:
        """End the batch in hand: no answer to it will come any more."""
        if self._batch is not None and not self._batch.dropped.done():
            self._batch.dropped.set_result(None)

    def _on_denied(self, subject: str) -> None:
        """Tell the batch in hand which subject (in lower case) the credentials do not cover."""
        if self._batch is not None:
            self._batch.deny(subject)


class _Batch:
    """One batch on its way. `dropped` resolves when the connection is lost; `over`: nobody waits for it any more."""

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
    def worth_sending(self) -> bool:
        """Whether there is a connection, and a message to send on it."""
        return self._connection.connected and len(self._refused) < len(self._messages)

    async def run(self) -> None:
        """Listen, publish, wait for the round trip, collect what came; raises what nats-py raises."""
        try:
            await self._subscribe()
            await self._publish()
            if await self._round_trip():
                await self._collect()
                self._arrived = True
        finally:
            await self._unsubscribe()

    def deny(self, subject: str) -> None:
        """Refuse the messages on a subject that may not be published on, or whose 503 could not be heard."""
        for number in self._written:
            message = self._messages[number]
            if message.subject.lower() == subject:
                self._refused[number] = f"the credentials may not publish on {message.subject}"
            elif message.reply is not None and message.reply.lower() == subject:
                # Not taken for sent: at least once is the promise, and nobody may have been there.
                self._refused[number] = (
                    f"the credentials may not subscribe to {message.reply}, so nobody knows who listens: may or may not have been sent"
                )

    def verdicts(self, waited: float) -> list[str | None]:
        """Say of each message what became of it within `waited` seconds."""
        gone = self.dropped.done() or not self._connection.connected
        unwritten = NOT_CONNECTED if gone else f"not sent within {waited:g} s"
        unanswered = LOST if gone else f"no word from the broker within {waited:g} s: may or may not have been sent"
        written = None if self._arrived else unanswered
        return [self._refused.get(number, written if number in self._written else unwritten) for number in range(len(self._messages))]

    def _stopped(self) -> bool:
        """Tell whether to write nothing more: nats-py would buffer it and send it after the reconnect."""
        return self.over or self.dropped.done() or not self._connection.connected

    async def _subscribe(self) -> None:
        """Listen on each reply subject."""
        for number, message in enumerate(self._messages):
            reply = message.reply
            if reply is None or reply in self._replies or number in self._refused:
                continue
            if self._stopped():
                return
            # No limits: fast answers would count as a slow consumer's, in the operator's log. They are gone with the subscription.
            self._replies[reply] = await self._client.subscribe(reply, pending_msgs_limit=0, pending_bytes_limit=0)

    async def _publish(self) -> None:
        """Write the messages in order; between the look at the connection and nats-py's own buffer nothing is awaited."""
        for number, message in enumerate(self._messages):
            if number in self._refused:
                continue
            if self._stopped():
                return
            self._written.add(number)
            try:
                await self._client.publish(message.subject, message.body, reply=message.reply or "", headers=dict(message.headers) or None)
            except Exception as error:  # noqa: BLE001  one message the client refuses must not stop all the others
                self._written.discard(number)
                self._refused[number] = f"not sent: {error!r}"

    async def _round_trip(self) -> bool:
        """Wait until the server has read everything written, and we all it said to that; False when the connection went meanwhile."""
        # Not `flush`: it returns at once when nats-py's reading has ended. Twice, for the reason that `NatsConnection.flush` gives.
        for _ in range(2):
            if self._stopped():
                return False  # a PING now would wait for a PONG in vain
            await self._client.rtt()
        return not self._stopped()

    async def _collect(self) -> None:
        """Refuse what nobody listens for; ordinary answers are the stream's."""
        for reply, subscription in self._replies.items():
            for _ in range(subscription.pending_msgs):
                status = await subscription.next_msg()
                if not status.data and status.headers and status.headers.get("Status") == _NO_RESPONDERS_STATUS:
                    self._nobody_listens(reply, status)

    def _nobody_listens(self, reply: str, status: Msg) -> None:
        """Refuse the message that a 503 is about; older servers do not name its subject, and a mapping may have changed it."""
        sent = [number for number in self._written if self._messages[number].reply == reply]
        named = (status.headers or {}).get("Nats-Subject")
        for number in [one for one in sent if self._messages[one].subject == named] or sent:
            self._refused.setdefault(number, NO_RESPONDERS)

    async def _unsubscribe(self) -> None:
        """Stop listening, also where the connection is down: nats-py would renew the subscriptions with it."""
        for subscription in self._replies.values():
            try:
                await subscription.unsubscribe()
            except Exception as error:  # noqa: BLE001  a closed connection has no subscriptions
                self._log.debug("bus.unsubscribe_failed", reason=repr(error))
