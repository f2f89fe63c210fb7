"""Write messages onto the connection in order, for callers that cannot wait.

`Bus.publish`, `Bus.settle` and the pull's callback are synchronous; nats-py's `publish` is a coroutine. One task moves what they queue into
the client's buffer, in one piece for all that has queued meanwhile. Where the socket is slow, that task waits, and the order stays.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from nats.aio.client import Client

from nats_taskflow.bus.nats.client import SettlementBytes
from nats_taskflow.bus.nats.frames import encode_frame
from nats_taskflow.bus.port import NO_HEADERS, Published, PublishFailed
from nats_taskflow.lazy_log import Logger
from nats_taskflow.tasks import keep, repeat
from nats_taskflow.wire.headers import Headers

# Bounds of one piece. A burst may queue thousands of frames: readers and timers get the loop in between.
_PIECE_FRAMES, _PIECE_BYTES = 256, 128 * 1024
_REST = 0.05
"""Seconds before the next attempt, where writing fails."""
_LITTLE = 64 * 1024
"""Bytes that may be left to write without anybody waiting for them (`wait_for_room`)."""


class Frame(NamedTuple):
    """One message to write.

    `waiting` is the publisher's future: once it is done, the message is not written any more. `keep`: the message may wait in the client's
    buffer for a reconnect (settlements). The rest is dropped while disconnected, because it would come too late.
    """

    subject: str
    body: bytes
    reply: str = ""
    headers: Headers = NO_HEADERS
    waiting: asyncio.Future[Published] | None = None
    keep: bool = False


class Outbound:
    """Queues frames, and writes them from one task between `start` and `stop`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._frames: deque[Frame] = deque()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._size = 0  # of the frames
        self._leaving: list[asyncio.Future[None]] = []
        self._hurried = False
        self._task: asyncio.Task[None] | None = None
        self._log = Logger()

    def put(self, frame: Frame) -> None:
        """Queue a frame; never blocks, never raises."""
        self._frames.append(frame)
        self._size += len(frame.body)
        self._empty.clear()
        self._filled.set()

    def start(self) -> None:
        """Start the writing task."""
        self._task = keep(repeat(self._run, "bus-outbound", rest=_REST), "bus-outbound")

    async def stop(self) -> None:
        """Stop the writing task; what is still queued is dropped."""
        self.hurry()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def wait_for_room(self) -> None:
        """Wait until little is left to write, or nothing more will be written."""
        client, loop = self._client, asyncio.get_running_loop()
        while not self._hurried and client.is_connected and max(self._size, client.pending_data_size) > _LITTLE:
            leaving: asyncio.Future[None] = loop.create_future()
            self._leaving.append(leaving)
            if self._size <= _LITTLE and client._flush_queue is not None:  # noqa: SLF001  see `_write`
                written: asyncio.Future[None] = loop.create_future()
                written.add_done_callback(self.wake)
                await client._flush_queue.put(written)  # noqa: SLF001
            await leaving

    def hurry(self) -> None:
        """From now on, have nobody wait in `wait_for_room`."""
        self._hurried = True
        self.wake()

    def wake(self, _written: object = None) -> None:
        """Have those who wait in `wait_for_room` check again."""
        leaving, self._leaving = self._leaving, []
        for future in leaving:
            if not future.done():
                future.set_result(None)

    async def drain(self) -> None:
        """Wait until everything queued so far is in the client's buffer."""
        await self._empty.wait()

    async def _run(self) -> None:
        """Wait for frames, and write them until there are none."""
        await self._filled.wait()
        while self._frames:
            await self._write(self._piece())
            self.wake()
            if self._frames:
                await asyncio.sleep(0)
        self._filled.clear()
        self._empty.set()

    def _piece(self) -> list[tuple[Frame, bytes]]:
        """Encode the next frames, as many as one piece holds.

        Those that would come too late or cannot be written are left out.
        """
        connected = self._client.is_connected
        room = 0 if connected else self._client._max_pending_size - self._client.pending_data_size  # noqa: SLF001  see `_write`
        piece: list[tuple[Frame, bytes]] = []
        size = 0
        while self._frames and len(piece) < _PIECE_FRAMES and size < _PIECE_BYTES:
            frame = self._frames.popleft()
            self._size -= len(frame.body)
            if frame.waiting is not None and frame.waiting.done():
                continue
            # The client would send it after the reconnect, when its sender has long given it up.
            if not connected and not frame.keep:
                continue
            try:
                data = encode_frame(frame.subject, frame.body, frame.reply, frame.headers)
            except (ValueError, MemoryError) as error:
                self._refuse(frame, error)
                continue
            if not connected and size + len(data) > room:
                self._refuse(frame, BufferError("the buffer that waits for the reconnect is full"))
                continue
            piece.append((frame, data))
            size += len(data)
        return piece

    async def _write(self, piece: list[tuple[Frame, bytes]]) -> None:
        """Put a piece into the client's buffer. Wait for the socket if the buffer is full.

        What may wait for a reconnect goes apart from the rest, which the client drops where the connection ends before it is written.

        This does what nats-py's `publish` does for one message, with its private names: `tests/contract/test_outbound.py` fails when a
        release moves them.
        """
        client = self._client
        if not piece or client.is_closed:
            return
        try:
            if settlements := b"".join([data for frame, data in piece if frame.keep]):
                await client._send_command(SettlementBytes(settlements))  # noqa: SLF001
            if (rest := b"".join([data for frame, data in piece if not frame.keep])) and client.is_connected:
                await client._send_command(rest)  # noqa: SLF001
            if client._flush_queue is not None and client._flush_queue.empty():  # noqa: SLF001
                await client._flush_pending()  # noqa: SLF001
        except Exception as error:  # noqa: BLE001  what the client refuses must not stop what comes next
            for frame, _ in piece:
                self._refuse(frame, error)

    def _refuse(self, frame: Frame, error: Exception) -> None:
        self._log.debug("bus.write_failed", subject=frame.subject, reason=repr(error))
        if frame.waiting is not None and not frame.waiting.done():
            frame.waiting.set_exception(PublishFailed(f"not sent: {error!r}"))
