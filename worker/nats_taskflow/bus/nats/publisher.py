"""Publish into streams and match the broker's acknowledgements to futures.

All acknowledgements come in on one inbox subscription, `<inbox>.<n>`. nats-py's own `publish` costs a subscription look-up, a task
and a timer for each message; its `publish_async` never resolves on an error acknowledgement (nats.py#985).
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
from nats_taskflow.bus.port import NOT_CONNECTED, Headers, OutgoingMessage, Published, PublishFailed
from nats_taskflow.tasks import Errands
from nats_taskflow.wire.headers import MSG_ID

# ADR-50: an atomic batch. They stay in the stored messages, where subscribers see them.
_BATCH, _PLACE, _COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"
_NO_RESPONDERS = "503"
_TOO_LARGE = 10054
"""The broker's code for a message over its stream's `max_msg_size`."""
_DUPLICATE = 10201
"""The broker's code for a batch with a message that it has."""
# Deadlines are looked at together; none is missed by more than this many seconds.
_SWEEP = 0.05


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


class _Kept(msgspec.Struct):
    """A message as the stream has it; `data` is base64."""

    subject: str = ""
    data: str = ""


class _Found(msgspec.Struct):
    """The answer to a look at a message; None where it is not there any more."""

    message: _Kept | None = None


class _Awaited(NamedTuple):
    """A message in flight that is acknowledged. `batch` and `size` tell the batch that it commits; `opens`: it only begins one."""

    future: asyncio.Future[Published]
    deadline: float
    subject: str
    message: OutgoingMessage | None = None
    batch: str = ""
    size: int = 0
    opens: bool = False


class Publisher:
    """Keep a future per message in flight and resolve each within `timeout` seconds."""

    def __init__(self, connection: NatsConnection, *, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._inbox = ""
        self._next = 0
        # In order of publishing, and so of deadline: the timeout is the same for all.
        self._waiting: dict[int, _Awaited] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._decoder = msgspec.json.Decoder(_PubAck)
        self._stored = msgspec.json.Decoder(_Found)
        self._looks = Errands()
        self._log = structlog.get_logger()

    async def open(self) -> None:
        """Subscribe to the acknowledgements; follow the connection's fate from now on."""
        self._inbox = self._connection.client.new_inbox()
        await self._connection.client.subscribe_directly(f"{self._inbox}.*", self._on_ack)
        self._connection.on_down.append(self._on_down)
        self._connection.on_denied.append(self._on_denied)

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Send the message; see `Bus.publish`."""
        headers = {**message.headers, MSG_ID: message.msg_id} if message.msg_id else message.headers
        future = self._future([(message, headers)])
        if not future.done():
            reply = self._await(_Awaited(future, self._deadline(), message.subject, message))
            self._connection.outbound.put(Frame(message.subject, message.body, reply, headers, future))
        return future

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Send the messages as one batch; see `Bus.publish_all`. The stream has to allow it."""
        batch, last = secrets.token_hex(8), len(messages)
        spelled = [(one, _batched(one, batch, place, last)) for place, one in enumerate(messages, 1)]
        future, deadline = self._future(spelled), self._deadline()
        if future.done():
            return future
        for place, (message, headers) in enumerate(spelled, 1):
            reply = ""
            if place == last:
                reply = self._await(_Awaited(future, deadline, message.subject, batch=batch, size=last))
            elif place == 1:
                reply = self._await(_Awaited(future, deadline, message.subject, opens=True))
            # Once the future has failed, the rest is not written, the commit least of all.
            self._connection.outbound.put(Frame(message.subject, message.body, reply, headers, future))
        return future

    def _future(self, messages: Sequence[tuple[OutgoingMessage, Headers]]) -> asyncio.Future[Published]:
        """Return the future of messages about to be sent; it has failed where they cannot be."""
        future: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        if not self._connection.connected:
            # Not buffered: it would be stored after its sender gave it up and moved on.
            future.set_exception(PublishFailed(NOT_CONNECTED))
            return future
        for message, headers in messages:
            refusal = objection(message.subject, message.body, headers, self._connection.max_payload)
            if refusal is not None:
                future.set_exception(PublishFailed(refusal, unsendable=True))
                break
        return future

    def _deadline(self) -> float:
        """Return when a message sent now has to be acknowledged."""
        return asyncio.get_running_loop().time() + self._timeout

    def _await(self, awaited: _Awaited) -> str:
        """Expect an acknowledgement; returns the subject it comes on."""
        self._next += 1
        self._waiting[self._next] = awaited
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._timeout, self._expire)
        return f"{self._inbox}.{self._next}"

    def close(self) -> None:
        """Fail what is in flight; nobody is left to retrieve those failures."""
        for future in self._fail_all("the connection was closed"):
            future.exception()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _on_ack(self, inbox: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        """Resolve the future that the acknowledgement names."""
        found = self._waiting.pop(_number(inbox), None)
        if found is None or found.future.done():
            return
        future, subject = found.future, found.subject
        if not body and headers and read_headers(headers).get(STATUS) == _NO_RESPONDERS:
            future.set_exception(PublishFailed(f"no stream takes {subject}", refused=True))
            return
        if found.opens and not body:
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
        elif found.opens or (ack.batch, ack.count) != (found.batch, found.size):
            future.set_exception(PublishFailed(f"the stream of {subject} does not store messages together"))
        elif ack.duplicate:
            self._looks.start(self._believe(found, ack), "look")
        else:
            future.set_result(Published(stream=ack.stream, seq=ack.seq))

    async def _believe(self, found: _Awaited, ack: _PubAck) -> None:
        """Take a message for published only if the one that the broker has under its id is this one (RELIABILITY 3, row 21).

        One that is not there any more was there once; where the credentials may not look, the broker is believed.
        """
        answer: Published | PublishFailed = Published(stream=ack.stream, seq=ack.seq, duplicate=True)
        try:
            raw = await self._connection.ask(f"$JS.API.STREAM.MSG.GET.{ack.stream}", b'{"seq":%d}' % ack.seq)
            stored = self._stored.decode(raw).message
            if stored is not None and found.message is not None and not _is(stored, found.message):
                other = f"message {ack.seq} of {ack.stream} has the id of a message on {found.subject}, and is another one"
                answer = PublishFailed(other, unsendable=True)
        except ApiDenied as silent:
            self._log.info("bus.duplicate_believed", reason=str(silent))
        except Exception as silent:  # noqa: BLE001  whatever it is, somebody waits for the future: nothing else resolves it
            answer = PublishFailed(f"whether a message on {found.subject} is stored is not known: {silent}")
        if found.future.done():
            return
        if isinstance(answer, PublishFailed):
            found.future.set_exception(answer)
        else:
            found.future.set_result(answer)

    def _expire(self) -> None:
        """Fail what waited too long; look again when the next one is due."""
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
        """Fail everything in flight: its acknowledgement will not come any more."""
        count = len(self._fail_all("the connection to NATS was lost before the acknowledgement came"))
        if count:
            self._log.debug("bus.publishes_failed", count=count, reason="disconnected")

    def _on_denied(self, subject: str) -> None:
        """Fail the messages on a subject the credentials may not publish on; `subject` is in lower case (nats-py folds it)."""
        for number, awaited in list(self._waiting.items()):
            if awaited.subject.lower() == subject:
                del self._waiting[number]
                if not awaited.future.done():
                    awaited.future.set_exception(PublishFailed(f"the credentials may not publish on {awaited.subject}", refused=True))

    def _fail_all(self, reason: str) -> list[asyncio.Future[Published]]:
        """Fail every future in flight and return them."""
        waiting = list(dict.fromkeys(awaited.future for awaited in self._waiting.values()))
        self._waiting.clear()
        failed = [future for future in waiting if not future.done()]
        for future in failed:
            future.set_exception(PublishFailed(reason))
        return failed


def _batched(message: OutgoingMessage, batch: str, place: int, last: int) -> Headers:
    """Return a message's headers with its place in the batch; the last one commits it."""
    headers = {**message.headers, MSG_ID: message.msg_id, _BATCH: batch, _PLACE: str(place)}
    return {**headers, _COMMIT: "1"} if place == last else headers


def _is(stored: _Kept, message: OutgoingMessage) -> bool:
    """Tell whether a stored message is the one that was published."""
    return stored.subject == message.subject and message.is_same(b64decode(stored.data), message.body)


def _number(inbox: bytes) -> int:
    """Read the message's number from the subject of its acknowledgement; -1 where there is none."""
    token = inbox.rpartition(b".")[2]
    return int(token) if token.isdigit() else -1
