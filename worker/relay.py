"""Publish what is committed: journal rows as events, dead letters as messages; in order, without gaps, at least once.

Rows are read as the database committed them, so nothing uncommitted is ever seen. Within a lane (a flow) one message is in flight at a
time: whatever the broker loses or refuses, the next one of the flow is not stored before it. Across lanes up to `window` are in flight,
and nothing is read while they weigh more than 4 MiB: that bounds memory after an outage. How far the outlet has come is noted now and
then: what is published again after a crash is byte-identical, under the same id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog

from worker.bus.base import Bus, Outgoing, Published
from worker.engine import Engine
from worker.errors import FlowError, Refusal, Unavailable
from worker.store.base import Transaction
from worker.store.records import Batch


class Letter(msgspec.Struct, frozen=True):
    """A row on its way out: its number in the outlet, its lane, and the message; None where the row cannot be read."""

    n: int
    lane: str
    message: Outgoing | None


Read = Callable[[int, int], Awaitable[list[Letter]]]
Fresh = Callable[[Batch], list[Letter]]
_RETRY_FIRST, _RETRY_LAST = 0.1, 1.0
_WINDOW_BYTES = 4 * 1024 * 1024
_MARK_EVERY = 1.0
"""Seconds between notes of how far the outlet has come: each costs a transaction; what lies between is published again after a crash."""


class Relay:
    """Empties one outlet (`events` or `dead_letters`).

    `read(after, limit)` gives its rows, at most `chunk` at a time; `heard(batch)` says whether a commit added any. `fresh(batch)` makes
    them from the batch itself, where that is worth it: a relay that has kept up need not read what was just committed.
    """

    def __init__(
        self,
        outlet: str,
        bus: Bus,
        engine: Engine,
        *,
        read: Read,
        heard: Callable[[Batch], bool],
        fresh: Fresh | None = None,
        window: int = 4096,
        chunk: int = 64,
    ) -> None:
        self.outlet = outlet
        self._bus = bus
        self._engine = engine
        self._read = read
        self._heard = heard
        self._fresh = fresh
        self._window = window
        self._chunk = chunk
        self._lanes: dict[str, deque[Letter]] = {}
        self._open: dict[int, Outgoing] = {}
        self._open_bytes = 0
        self._last_read = self._marked = self._sent_up_to = 0
        self.stored = 0
        """How many rows the broker has stored since the start, repeats among them."""
        self._more = True
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()
        self._held: deque[Letter] = deque()
        self._retry_in = _RETRY_FIRST
        self._retrying = False
        self._stuck = False
        self._told = False
        self._unmarked = False
        self._reading = False
        self.trouble = ""
        """Why the broker does not take something that is committed; empty while it takes everything."""
        self._log = structlog.get_logger("relay").bind(outlet=outlet)
        engine.listen(self._committed)

    @property
    def in_flight(self) -> int:
        """How many rows are read but not stored by the broker."""
        return len(self._open)

    @property
    def idle(self) -> bool:
        """Whether everything committed so far is published."""
        return not self._more and not self._reading and not self._open

    async def run(self) -> None:
        """Publish until cancelled."""
        self._last_read = self._marked = self._sent_up_to = await self._engine.store.published(self.outlet)
        marking = asyncio.create_task(self._mark_now_and_then())
        try:
            while True:
                self._woken.clear()
                if self._more and len(self._open) < self._window and self._open_bytes < _WINDOW_BYTES:
                    await self._fill()
                else:
                    await self._woken.wait()
        finally:
            marking.cancel()

    async def drain(self, timeout: float) -> bool:
        """Wait until everything committed is published, at most `timeout` seconds; then note how far it came. True: all of it."""
        try:
            async with asyncio.timeout(timeout):
                while not self.idle:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            self._log.warning("not_everything_published", in_flight=self.in_flight)
        await self._mark()
        return self.idle

    def hear(self) -> None:
        """Rows were committed: read them. Called for batches; housekeeping that adds rows has to call it."""
        self._more = True
        self._woken.set()

    def _committed(self, batch: Batch) -> None:
        """Take what was committed straight from the batch if everything before it is lined up; otherwise read it in its turn."""
        if not self._heard(batch):
            return
        kept_up = not self._more and not self._reading and len(self._open) < self._window and self._open_bytes < _WINDOW_BYTES
        if self._fresh is None or not kept_up or batch.first_event != self._last_read + 1:
            self.hear()
            return
        for letter in self._fresh(batch):
            self._last_read = letter.n
            self._line_up(letter)

    async def _fill(self) -> None:
        """Read more rows into their lanes and start the lanes that were empty."""
        # What is committed while we read may not be in it: it is heard of, and read next.
        self._more, self._reading = False, True
        asked = min(self._window - len(self._open), self._chunk)
        try:
            letters = await self._read(self._last_read, asked)
        except Unavailable as later:
            self._log.warning("outlet_not_read", why=later.message)
            self._more = True
            await asyncio.sleep(_RETRY_FIRST)
            return
        finally:
            self._reading = False
        self._more = self._more or len(letters) == asked
        for letter in letters:
            self._last_read = letter.n
            self._line_up(letter)
        self._settled.set()

    def _line_up(self, letter: Letter) -> None:
        """Put a letter into its lane. One that cannot be read is reported and passed over: damage of one row holds back no other."""
        if letter.message is None:
            self._log.error("row_passed_over", n=letter.n, lane=letter.lane)
            self._sent_up_to = max(self._sent_up_to, letter.n)
            return
        self._open[letter.n] = letter.message
        self._open_bytes += len(letter.message.body)
        lane = self._lanes.setdefault(letter.lane, deque())
        lane.append(letter)
        if len(lane) > 1:
            return
        if self._stuck:
            self._held.append(letter)
        else:
            self._send(letter)

    def _send(self, letter: Letter) -> None:
        """Publish the head of a lane."""
        try:
            answer = self._bus.publish(self._open[letter.n])
        except Exception as defect:  # noqa: BLE001  # reported, and tried again: this runs in callbacks, where it would end the lane for ever
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(defect)
        answer.add_done_callback(partial(self._answered, letter))

    def _answered(self, letter: Letter, answer: asyncio.Future[Published]) -> None:
        """Go on with the lane when the broker has stored its head; otherwise try the same message again later."""
        if answer.cancelled() or answer.exception() is not None:
            self._hold(letter, "cancelled" if answer.cancelled() else str(answer.exception()))
            return
        self._retry_in = _RETRY_FIRST
        self._stuck = self._told = False
        if self._held:
            self._retry_later()
        else:
            self.trouble = ""
        lane = self._lanes[letter.lane]
        lane.popleft()
        if lane:
            self._send(lane[0])
        else:
            del self._lanes[letter.lane]
        self._open_bytes -= len(self._open.pop(letter.n).body)
        self.stored += 1
        self._sent_up_to = max(self._sent_up_to, letter.n)
        self._woken.set()
        self._settled.set()

    def _hold(self, letter: Letter, why: str) -> None:
        """Keep a message that the broker did not take. It is published again later, ever later while nothing goes through."""
        self._held.append(letter)
        self._stuck = True
        self.trouble = why
        if self._bus.connected and not self._told:  # once until something goes through
            message = self._open[letter.n]
            self._log.warning("publish_failed", subject=message.subject, msg_id=message.msg_id, why=why)
        self._told = self._bus.connected
        self._retry_later()

    def _retry_later(self) -> None:
        """See to it that what is held is published again."""
        if self._retrying:
            return
        self._retrying = True
        asyncio.get_running_loop().call_later(self._retry_in, self._retry)
        self._retry_in = min(self._retry_in * 2, _RETRY_LAST)

    def _retry(self) -> None:
        """Publish what is held: all of it where something went through since, else one to find out whether anything does.

        A broker that refuses (a full stream, a lost permission) is asked once a second and not once for each flow. Which one is asked
        goes round: the reason may lie with the message itself.
        """
        self._retrying = False
        for _ in range(min(1, len(self._held)) if self._stuck else len(self._held)):
            self._send(self._held.popleft())

    async def _mark_now_and_then(self) -> None:
        """Note progress while there is any."""
        while True:
            await asyncio.sleep(_MARK_EVERY)
            await self._mark()

    async def _mark(self) -> None:
        """Note up to which row everything is published: the last one before the first that is not."""
        up_to = min(self._open, default=self._sent_up_to + 1) - 1
        if up_to <= self._marked:
            return

        async def mark(transaction: Transaction) -> None:
            """Note the row."""
            await transaction.mark_published(self.outlet, up_to)

        try:
            await self._engine.do(mark)
        except (FlowError, Refusal) as later:
            if not self._unmarked:  # once until it can be: what is not noted is published again after the next start
                self._log.warning("progress_not_noted", why=str(later))
            self._unmarked = True
        else:
            self._marked = up_to
            self._unmarked = False
