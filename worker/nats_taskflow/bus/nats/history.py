"""Read a stream from its start to what is its end now, and say where its consumer stands; nothing is acknowledged, nothing changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import msgspec
from nats.errors import Error as NatsError

from nats_taskflow.bus.nats.connection import NatsConnection, NatsOptions
from nats_taskflow.bus.port import Headers
from nats_taskflow.errors import BusLost

_AT_ONCE = 256
_PATIENCE = 10.0


class StreamMessage(msgspec.Struct, frozen=True):
    """A message as its stream keeps it; `seq` is its place."""

    seq: int
    subject: str
    headers: Headers
    body: bytes


class StreamReader:
    """A connection that only reads. Raises `BusLost` where NATS does not answer, `NotAllowed` where it does not permit it."""

    def __init__(self, options: NatsOptions) -> None:
        self._connection = NatsConnection(options)

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._connection.close()

    async def first(self, stream: str) -> int:
        """Return the lowest place that the stream still keeps."""
        jetstream = self._connection.client.jetstream()
        try:
            state = (await self._connection.permitted(jetstream.stream_info(stream), f"$JS.API.STREAM.INFO.{stream}")).state
        except (NatsError, OSError) as bad:
            raise _unread(stream, bad) from bad
        return max(state.first_seq, 1)

    async def messages(self, stream: str) -> AsyncIterator[list[StreamMessage]]:
        """Give the stream's messages in their order, some at a time, up to what is the last one when it is asked for."""
        from nats.js.api import AckPolicy, ConsumerConfig  # noqa: PLC0415 - a large module, and others want only `StreamMessage`

        jetstream, permitted = self._connection.client.jetstream(), self._connection.permitted
        # For a moment only: the server forgets a consumer that nobody asks.
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60.0, mem_storage=True)
        try:
            state = (await permitted(jetstream.stream_info(stream), f"$JS.API.STREAM.INFO.{stream}")).state
            if state.messages == 0:
                return
            subscription = await permitted(jetstream.pull_subscribe("", stream=stream, config=config), f"$JS.API.CONSUMER.CREATE.{stream}")
            last = 0
            while last < state.last_seq:
                found = await permitted(subscription.fetch(_AT_ONCE, timeout=_PATIENCE), f"$JS.API.CONSUMER.MSG.NEXT.{stream}")
                kept = [StreamMessage(m.metadata.sequence.stream, m.subject, dict(m.headers or {}), m.data) for m in found]
                last = kept[-1].seq
                yield kept
            await subscription.unsubscribe()
        except (NatsError, OSError) as bad:
            raise _unread(stream, bad) from bad


def _unread(stream: str, bad: BaseException) -> BusLost:
    """Say what keeps the stream from being read."""
    return BusLost(f"stream {stream} cannot be read: {str(bad) or type(bad).__name__}")
