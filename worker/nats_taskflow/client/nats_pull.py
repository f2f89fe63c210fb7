"""Pull messages from a JetStream consumer continuously, and say at once when the pull is not to be trusted any more.

nats-py has no continuous consume. One pull request is open at a time; heartbeats show that the server still has it. Whatever is odd
(silence, a consumer that is gone, a hole in the consumer's numbering) ends the pull with `PullBroken`: whoever pulls makes a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

HEARTBEAT = 1.0
_EXPIRES = 30.0
_NS = 1_000_000_000
_ACK = "$JS.ACK."
_ENDED = ("404", "408")


class PullBroken(Exception):
    """The pull is over. `gone`: the consumer does not exist (any more)."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


def next_subject(stream: str, consumer: str) -> str:
    """Give the subject of pull requests, as permissions name it."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"


async def pulled(client: Client, stream: str, consumer: str, at_most: int) -> AsyncGenerator[Msg, None]:
    """Give a consumer's messages as they come. Raises `PullBroken`, or what nats-py raises where the connection is closed."""
    inbox = client.new_inbox()
    queue: asyncio.Queue[Msg] = asyncio.Queue()

    async def take(message: Msg) -> None:
        """Queue a message; what is in the queue is bounded by what was asked for."""
        queue.put_nowait(message)

    subscription = await client.subscribe(f"{inbox}.*", cb=take, pending_msgs_limit=0, pending_bytes_limit=0)
    request = left = consumed = 0
    try:
        while True:
            if left <= 0:
                request, left = request + 1, at_most
                await client.publish(next_subject(stream, consumer), _request(at_most), reply=f"{inbox}.{request}")
            message = await _next(queue)
            # By the reply subject, not the status header: a stored message can carry any header.
            if message.reply.startswith(_ACK):
                number = message.metadata.sequence.consumer
                if consumed and number != consumed + 1:
                    raise PullBroken(f"consumer {consumer}: delivery {consumed + 1} is missing")
                left, consumed = left - 1, number
                yield message
            elif message.subject == f"{inbox}.{request}" and _is_over(message, consumer):
                left = 0
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()


async def _next(queue: asyncio.Queue[Msg]) -> Msg:
    """Return the next message. Raises `PullBroken` when two heartbeats are missed."""
    if not queue.empty():
        return queue.get_nowait()
    try:
        async with asyncio.timeout(2 * HEARTBEAT + 0.5):
            return await queue.get()
    except TimeoutError:
        raise PullBroken("no message and no heartbeat") from None


def _is_over(message: Msg, consumer: str) -> bool:
    """Tell whether a status ends the request in the ordinary way. Raises `PullBroken` for any other but a heartbeat."""
    headers = message.headers or {}
    status, reason = headers.get("Status", ""), headers.get("Description", "")
    if status == "100":
        return False
    if status in _ENDED or reason == "Batch Completed":
        return True
    raise PullBroken(f"consumer {consumer}: {status} {reason}", gone=status == "503" or "Deleted" in reason)


def _request(batch: int) -> bytes:
    """Write a pull request."""
    return msgspec.json.encode({"batch": batch, "expires": int(_EXPIRES * _NS), "idle_heartbeat": int(HEARTBEAT * _NS)})
