"""A TCP proxy between a worker and its nats-server, and what it can do to the bytes (RELIABILITY 3, rows 19–21).

Agents connect to the server itself, so a fault hits the worker alone. Every fault is an attribute that takes effect at once.
`UP` is from the worker to the server, `DOWN` from the server to the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

import msgspec

_CHUNK = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way(StrEnum):
    """A direction."""

    UP = "up"
    DOWN = "down"


UP, DOWN = Way.UP, Way.DOWN


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """Cut the connection once this many more bytes went this way; `reset`: with RST instead of FIN."""

    way: Way
    after: int
    reset: bool = False


class Proxy:
    """Listens on a free port of the loopback interface and passes on to `target()`, a NATS URL asked for at each connection.

    `latency` (seconds) delays every piece, `bandwidth` (bytes a second) bounds each way. Ways in `swallowed` are read and dropped (a black
    hole). `closed`: new connections are refused. `loses(frame)` says which frames of the server to drop, whole.
    """

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._cut: Cut | None = None
        self._cut_next: Cut | None = None
        self.latency = 0.0
        self.bandwidth: float | None = None
        self.thawed = {way: asyncio.Event() for way in Way}
        self.swallowed: set[Way] = set()
        self.closed = False
        self.loses: Callable[[bytes], bool] | None = None
        self.passed: Counter[Way] = Counter()
        self.connections = self.cuts = self.lost = 0
        for thawed in self.thawed.values():
            thawed.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """Where the worker connects."""
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def open_links(self) -> int:
        """How many connections there are."""
        return len(self._links)

    @property
    def armed(self) -> bool:
        """Whether a cut has still to happen."""
        return self._cut is not None or self._cut_next is not None

    def cut(self, how: Cut) -> None:
        """Cut the connection there is, counted from now."""
        self._cut = how

    def cut_next(self, how: Cut) -> None:
        """Cut the next connection, counted from its first byte."""
        self._cut_next = how

    def disarm(self) -> None:
        """Take back a cut that has not happened."""
        self._cut = self._cut_next = None

    def drop(self, *, reset: bool = False) -> None:
        """Cut every connection now."""
        for link in tuple(self._links):
            link.end(reset=reset)

    def freeze(self, *ways: Way) -> None:
        """Read nothing more of these ways: half-open, the sender's buffers fill up."""
        for way in ways:
            self.thawed[way].clear()

    def strand(self) -> None:
        """Read nothing more of the connections there are, for good, also after `heal`: a path that is gone, and nobody says so."""
        for link in self._links:
            link.thawed.clear()

    def heal(self) -> None:
        """Take every fault away."""
        self.latency, self.bandwidth, self.closed, self.loses = 0.0, None, False, None
        self.swallowed.clear()
        self.disarm()
        for thawed in self.thawed.values():
            thawed.set()

    def take(self, way: Way, piece: bytes) -> tuple[bytes, Cut | None]:
        """Say how much of a piece may go on, and the cut that is due after it."""
        due = self._cut
        if due is None or due.way is not way:
            self.passed[way] += len(piece)
            return piece, None
        going = piece[: due.after]
        self.passed[way] += len(going)
        left = due.after - len(going)
        self._cut = msgspec.structs.replace(due, after=left)
        if left > 0:
            return going, None
        self._cut = None
        self.cuts += 1
        return going, due

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        if self.closed:
            writer.transport.abort()
            return
        self.connections += 1
        self._cut, self._cut_next = self._cut_next or self._cut, None
        target = urlsplit(self._target())
        try:
            far_reader, far_writer = await asyncio.open_connection(target.hostname, target.port, limit=_CHUNK)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, writer, far_writer)
        self._links.add(link)
        try:
            await link.run(reader, far_reader)
        finally:
            self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._near = near
        self._far = far
        self._over = asyncio.Event()
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def run(self, near: asyncio.StreamReader, far: asyncio.StreamReader) -> None:
        """Pass on both ways until one ends."""
        pumps = [asyncio.create_task(self._pump(UP, near, self._far)), asyncio.create_task(self._pump(DOWN, far, self._near))]
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait([*pumps, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*pumps, over):
                task.cancel()
            await asyncio.wait([*pumps, over])
            self.end()

    def end(self, *, reset: bool = False) -> None:
        """Close both sides: with FIN after what was written, or with RST at once."""
        for writer in (self._near, self._far):
            if reset:
                with contextlib.suppress(OSError):  # already gone
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
            writer.close()
        self._over.set()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one way's bytes on, with whatever is wrong with that way at the moment."""
        proxy, frames = self._proxy, Frames()
        with contextlib.suppress(OSError):  # either side may go at any time: that is the end of the link
            while True:
                await self._unless_frozen(way)
                piece = await reader.read(_CHUNK)
                if not piece:
                    return
                await self._unless_frozen(way)  # it may have been frozen while we waited for this piece
                if way in proxy.swallowed:
                    continue
                if way is DOWN:
                    piece = self._without_lost(frames.feed(piece))
                await self._slow(len(piece))
                going, due = proxy.take(way, piece)
                writer.write(going)
                await writer.drain()
                if due is not None:
                    self.end(reset=due.reset)
                    return

    async def _unless_frozen(self, way: Way) -> None:
        """Return once this way may be read."""
        await self._proxy.thawed[way].wait()
        await self.thawed.wait()

    def _without_lost(self, frames: list[bytes]) -> bytes:
        """Drop the frames that are to be lost."""
        loses = self._proxy.loses
        kept = [frame for frame in frames if loses is None or not loses(frame)]
        self._proxy.lost += len(frames) - len(kept)
        return b"".join(kept)

    async def _slow(self, size: int) -> None:
        """Take as long as a slow link does."""
        wait = self._proxy.latency + (size / self._proxy.bandwidth if self._proxy.bandwidth else 0.0)
        if wait > 0:
            await asyncio.sleep(wait)


class Frames:
    """Cuts what a NATS server sends into whole protocol frames; must be fed from a frame's start."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the frames that are complete now."""
        self._rest += piece
        found = []
        while (size := self._whole()) is not None:
            found.append(self._rest[:size])
            self._rest = self._rest[size:]
        return found

    def _whole(self) -> int | None:
        """Return the size of the first frame if all of it is there."""
        end = self._rest.find(b"\r\n")
        if end < 0:
            return None
        line = self._rest[:end]
        if not line.startswith((b"MSG ", b"HMSG ")):
            return end + 2
        size = end + 2 + int(line.rsplit(b" ", 1)[1]) + 2
        return size if len(self._rest) >= size else None
