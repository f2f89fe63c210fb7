"""Close an HTTP connection that is too slow to send or to read.

It would keep others out.

uvicorn by itself waits for ever, for the rest of a request and until its answer is read.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from nats_taskflow.http.bounds import BOUNDS, one_too_many, peer_of


class _Deadline:
    """Closes a connection unless something happens in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        """Start the time, unless it runs already."""
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._transport.abort)

    def end(self) -> None:
        """Stop the time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class BoundedConnection(H11Protocol):
    """An HTTP/1.1 connection within `bounds`, which a subclass may set."""

    bounds = BOUNDS
    since = 0.0
    peer = ""

    @property
    def asks(self) -> bool:
        """Whether a request came whole and is not answered yet."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body  # type: ignore[redundant-expr]  # None at first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin, and close another connection when there are too many."""
        super().connection_made(transport)
        self.since, self.peer = self.loop.time(), peer_of(self.client[0] if self.client else "")
        self._request, self._answer = _Deadline(self.loop, transport), _Deadline(self.loop, transport)
        self._request.begin(self.bounds.request_seconds)
        connections = cast("set[BoundedConnection]", self.connections)
        leaving = one_too_many(connections, self, self.bounds)
        if leaving is not None:
            connections.discard(leaving)  # now: otherwise it counts until the next turn of the loop
            leaving.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read; a request that has begun must be whole in time."""
        super().data_received(data)
        if self.asks:
            self._request.end()
        else:
            self._request.begin(self.bounds.request_seconds)

    def on_response_complete(self) -> None:
        """Go on to the next request, which has its own time."""
        self._request.end()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the answer to be read, but not for ever."""
        super().pause_writing()
        self._answer.begin(self.bounds.answer_seconds)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._answer.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._request.end()
        self._answer.end()
        super().connection_lost(exc)
