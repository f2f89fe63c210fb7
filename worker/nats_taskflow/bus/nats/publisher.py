"""Publish into streams and match the broker's acknowledgements to futures.

All acknowledgements come to one inbox subscription, `<inbox>.<n>`. nats-py's own `publish` costs a subscription look-up, a task and a
timer for each message; its `publish_async` never resolves on an error acknowledgement (nats.py#985).
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64decode
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.nats.connection import ApiDenied, NatsConnection
from nats_taskflow.bus.nats.frames import STATUS, read_headers
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.port import NOT_CONNECTED, OutgoingMessage, Published, PublishFailed
from nats_taskflow.tasks import Errands
from nats_taskflow.wire.headers import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, MSG_ID, Headers

_NO_RESPONDERS = "503"
_TOO_LARGE = 10054
"""The broker's code for a message over its stream's `max_msg_size`."""
_DUPLICATE = 10201
"""The broker's code for a batch with a message that it already has."""
_SWEEP = 0.05
"""Deadlines are checked together; each is noticed at most this many seconds late."""


class _ApiError(msgspec.Struct):
    """The broker's reason for a refusal."""

    description: str = ""
    err_code: int = 0


class _PubAck(msgspec.Struct):
    """A publish acknowledgement, good or bad."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    batch: str = ""
    count: int = 0
    error: _ApiError | None = None


class _StreamMessage(msgspec.Struct):
    """A message in a stream; `data` is base64."""

    subject: str = ""
    data: str = ""


class _GetAnswer(msgspec.Struct):
    """The answer of `STREAM.MSG.GET`; without a message where it is gone."""

    message: _StreamMessage | None = None


class _InFlight(NamedTuple):
    """A message whose acknowledgement is due.

    `batch` and `size` name the batch that it commits; `opens`: it begins one.
    """

    future: asyncio.Future[Published]
    deadline: float
    subject: str
    outgoing: OutgoingMessage | None = None
    batch: str = ""
    size: int = 0
    opens: bool = False


class Publisher:
    """Keeps a future per message in flight, and resolves each within `timeout`."""

    def __init__(self, connection: NatsConnection, *, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._inbox = ""
        self._next = 0
        # In the order of publishing, and so of their deadlines: all have one timeout.
        self._waiting: dict[int, _InFlight] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._decoder = msgspec.json.Decoder(_PubAck)
        self._get_decoder = msgspec.json.Decoder(_GetAnswer)
        self._duplicate_checks = Errands()
        self._log = structlog.get_logger()

    async def open(self) -> None:
        """Subscribe to the acknowledgements, and follow the connection from now on."""
        self._inbox = self._connection.client.new_inbox()
        await self._connection.client.subscribe_directly(f"{self._inbox}.*", self._on_ack)
        self._connection.on_down.append(self._on_down)
        self._connection.on_denied.append(self._on_denied)

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Send the message; see `Bus.publish`."""
        headers = {**message.headers, MSG_ID: message.msg_id} if message.msg_id else message.headers
        future = self._future([(message, headers)])
        if not future.done():
            reply = self._expect(_InFlight(future, self._deadline(), message.subject, message))
            self._connection.outbound.put(Frame(message.subject, message.body, reply, headers, future))
        return future

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Send the messages as one batch; see `Bus.publish_all`.

        The stream has to allow it.
        """
        batch, last = secrets.token_hex(8), len(messages)
        outgoing = [(message, _batch_headers(message, batch, place, last)) for place, message in enumerate(messages, 1)]
        future, deadline = self._future(outgoing), self._deadline()
        if future.done():
            return future
        for place, (message, headers) in enumerate(outgoing, 1):
            reply = ""
            if place == last:
                reply = self._expect(_InFlight(future, deadline, message.subject, batch=batch, size=last))
            elif place == 1:
                reply = self._expect(_InFlight(future, deadline, message.subject, opens=True))
            # Once the future has failed, the rest is not written, the commit least of all.
            self._connection.outbound.put(Frame(message.subject, message.body, reply, headers, future))
        return future

    def _future(self, messages: Sequence[tuple[OutgoingMessage, Headers]]) -> asyncio.Future[Published]:
        """Return the future of messages to send. It has failed if they cannot be sent."""
        future: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        if not self._connection.connected:
            # Not buffered: it would be stored after its sender has given it up.
            future.set_exception(PublishFailed(NOT_CONNECTED))
            return future
        for message, headers in messages:
            refusal = objection(message.subject, message.body, headers, self._connection.max_payload)
            if refusal is not None:
                future.set_exception(PublishFailed(refusal, unsendable=True))
                break
        return future

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout

    def _expect(self, message: _InFlight) -> str:
        """Expect an acknowledgement; return the subject that it comes on."""
        self._next += 1
        self._waiting[self._next] = message
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._timeout, self._expire)
        return f"{self._inbox}.{self._next}"

    def close(self) -> None:
        """Fail what is in flight."""
        for future in self._fail_all("the connection was closed"):
            future.exception()  # nobody is left to retrieve it, and asyncio would log it
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _on_ack(self, inbox: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        """Resolve the future of the message that was acknowledged."""
        message = self._waiting.pop(_number(inbox), None)
        if message is None or message.future.done():
            return
        future, subject = message.future, message.subject
        if not body and headers and read_headers(headers).get(STATUS) == _NO_RESPONDERS:
            future.set_exception(PublishFailed(f"no stream takes {subject}", refused=True))
            return
        if message.opens and not body:
            return  # the batch may go on
        try:
            ack = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            future.set_exception(PublishFailed(f"the answer to a message on {subject} is no acknowledgement"))
            return
        if ack.error is not None:
            reason = f"{ack.error.description} ({ack.error.err_code})"
            why = f"the broker refused a message on {subject}: {reason}"
            too_large, duplicate = ack.error.err_code == _TOO_LARGE, ack.error.err_code == _DUPLICATE
            future.set_exception(PublishFailed(why, refused=True, unsendable=too_large, duplicate=duplicate))
        elif message.opens or (ack.batch, ack.count) != (message.batch, message.size):
            future.set_exception(PublishFailed(f"the stream of {subject} does not store messages together"))
        elif ack.duplicate:
            self._duplicate_checks.start(self._check_duplicate(message, ack), "look")
        else:
            future.set_result(Published(stream=ack.stream, seq=ack.seq))

    async def _check_duplicate(self, message: _InFlight, ack: _PubAck) -> None:
        """Count a duplicate as published only if the broker's message is the same one.

        That is RELIABILITY 3, row 21. If the broker's message is gone from the stream, it was published once. If the credentials may not
        read it, the broker is believed.
        """
        answer: Published | PublishFailed = Published(stream=ack.stream, seq=ack.seq, duplicate=True)
        try:
            raw = await self._connection.ask(f"$JS.API.STREAM.MSG.GET.{ack.stream}", b'{"seq":%d}' % ack.seq)
            stored = self._get_decoder.decode(raw).message
            if stored is not None and message.outgoing is not None and not _is_same(stored, message.outgoing):
                other = f"message {ack.seq} of {ack.stream} has the id of a message on {message.subject}, and is another one"
                answer = PublishFailed(other, unsendable=True)
        except ApiDenied as denied:
            self._log.info("bus.duplicate_believed", reason=str(denied))
        except Exception as error:  # noqa: BLE001  whatever it is, somebody awaits the future, and nothing else resolves it
            answer = PublishFailed(f"whether a message on {message.subject} is stored is not known: {error}")
        if message.future.done():
            return
        if isinstance(answer, PublishFailed):
            message.future.set_exception(answer)
        else:
            message.future.set_result(answer)

    def _expire(self) -> None:
        """Fail what waited too long; check again when the next one is due."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting:
            number = next(iter(self._waiting))
            future, deadline, subject = self._waiting[number][:3]
            if deadline > now and not future.done():
                self._sweep = loop.call_later(max(deadline - now, _SWEEP), self._expire)
                return
            del self._waiting[number]
            if not future.done():
                future.set_exception(PublishFailed(f"no acknowledgement within {self._timeout:g} s for {subject}"))

    def _on_down(self) -> None:
        # No acknowledgement will come for what is in flight.
        count = len(self._fail_all("the connection to NATS was lost before the acknowledgement came"))
        if count:
            self._log.debug("bus.publishes_failed", count=count, reason="disconnected")

    def _on_denied(self, subject: str) -> None:
        """Fail the messages on a subject (in lower case) that may not be published on."""
        for number, message in list(self._waiting.items()):
            if message.subject.lower() == subject:
                del self._waiting[number]
                if not message.future.done():
                    message.future.set_exception(PublishFailed(f"the credentials may not publish on {message.subject}", refused=True))

    def _fail_all(self, reason: str) -> list[asyncio.Future[Published]]:
        """Fail every future in flight and return them."""
        waiting = list(dict.fromkeys(message.future for message in self._waiting.values()))
        self._waiting.clear()
        failed = [future for future in waiting if not future.done()]
        for future in failed:
            future.set_exception(PublishFailed(reason))
        return failed


def _batch_headers(message: OutgoingMessage, batch: str, place: int, last: int) -> Headers:
    headers = {**message.headers, MSG_ID: message.msg_id, BATCH_ID: batch, BATCH_SEQUENCE: str(place)}
    return {**headers, BATCH_COMMIT: "1"} if place == last else headers


def _is_same(stored: _StreamMessage, message: OutgoingMessage) -> bool:
    return stored.subject == message.subject and message.is_same(b64decode(stored.data), message.body)


def _number(inbox: bytes) -> int:
    # The subject of an acknowledgement ends in its message's number.
    token = inbox.rpartition(b".")[2]
    return int(token) if token.isdigit() else -1
