"""Publish into streams and match the broker's acknowledgements to futures.

All acknowledgements come in on one inbox subscription, `<inbox>.<n>`. nats-py's own `publish` costs a subscription look-up, a task
and a timer for each message; its `publish_async` never resolves on an error acknowledgement (nats.py#985).
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from worker.bus.base import Outgoing, Published, PublishFailed
from worker.bus.connection import Connection
from worker.bus.frames import STATUS, read_headers
from worker.bus.outbound import Frame, objection

_MSG_ID = "Nats-Msg-Id"
_NO_RESPONDERS = "503"
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
    error: _ApiError | None = None


class Publisher:
    """Keep a future per message in flight and resolve each within `timeout` seconds."""

    def __init__(self, connection: Connection, *, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._inbox = ""
        self._next = 0
        # In order of publishing, and so of deadline: the timeout is the same for all.
        self._waiting: dict[int, tuple[asyncio.Future[Published], float, str]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._decoder = msgspec.json.Decoder(_PubAck)
        self._log = structlog.get_logger()

    async def open(self) -> None:
        """Subscribe to the acknowledgements; follow the connection's fate from now on."""
        self._inbox = self._connection.client.new_inbox()
        await self._connection.client.subscribe_directly(f"{self._inbox}.*", self._on_ack)
        self._connection.on_down.append(self._on_down)
        self._connection.on_denied.append(self._on_denied)

    def publish(self, message: Outgoing) -> asyncio.Future[Published]:
        """Send the message; see `Bus.publish`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Published] = loop.create_future()
        if not self._connection.connected:
            # Not buffered: it would be stored after its sender gave it up and moved on.
            future.set_exception(PublishFailed("not connected to NATS"))
            return future
        headers = {**message.headers, _MSG_ID: message.msg_id} if message.msg_id else message.headers
        refusal = objection(message.subject, message.body, headers, self._connection.max_payload)
        if refusal is not None:
            future.set_exception(PublishFailed(refusal, refused=True))
            return future
        self._next += 1
        self._waiting[self._next] = (future, loop.time() + self._timeout, message.subject)
        self._connection.outbound.put(Frame(message.subject, message.body, f"{self._inbox}.{self._next}", headers, future))
        if self._sweep is None:
            self._sweep = loop.call_later(self._timeout, self._expire)
        return future

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
        if found is None or found[0].done():
            return
        future, _, subject = found
        if not body and headers and read_headers(headers).get(STATUS) == _NO_RESPONDERS:
            future.set_exception(PublishFailed(f"no stream takes {subject}", refused=True))
            return
        try:
            ack = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            future.set_exception(PublishFailed(f"the answer to a message on {subject} is no acknowledgement"))
            return
        if ack.error is not None:
            reason = f"{ack.error.description} ({ack.error.err_code})"
            future.set_exception(PublishFailed(f"the broker refused a message on {subject}: {reason}", refused=True))
            return
        future.set_result(Published(stream=ack.stream, seq=ack.seq, duplicate=ack.duplicate))

    def _expire(self) -> None:
        """Fail what waited too long; look again when the next one is due."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting:
            number = next(iter(self._waiting))
            future, deadline, subject = self._waiting[number]
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
        for number, (future, _, sent_on) in list(self._waiting.items()):
            if sent_on.lower() == subject:
                del self._waiting[number]
                if not future.done():
                    future.set_exception(PublishFailed(f"the credentials may not publish on {sent_on}", refused=True))

    def _fail_all(self, reason: str) -> list[asyncio.Future[Published]]:
        """Fail every future in flight and return them."""
        failed = [future for future, _, _ in self._waiting.values() if not future.done()]
        self._waiting.clear()
        for future in failed:
            future.set_exception(PublishFailed(reason))
        return failed


def _number(inbox: bytes) -> int:
    """Read the message's number from the subject of its acknowledgement; -1 where there is none."""
    token = inbox.rpartition(b".")[2]
    return int(token) if token.isdigit() else -1
