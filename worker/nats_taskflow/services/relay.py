"""Publish what is committed: journal rows as events, dead letters as messages; in order, without gaps, at least once.

Rows are read as the database committed them, so nothing uncommitted is ever seen. `OrderedPublisher` sends them, in order within a
flow; up to `window` are in its hands, and nothing is read while they weigh more than 4 MiB: that bounds memory after an outage. How far the
outlet has come is noted now and then: what is published again after a crash is byte-identical, under the same id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from nats_taskflow.bus.port import Bus
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError, Refusal, Unavailable
from nats_taskflow.services.ordered_publisher import OrderedPublisher
from nats_taskflow.services.outbox_message import OutboxMessage
from nats_taskflow.store.port import Transaction
from nats_taskflow.store.records import Batch
from nats_taskflow.tasks import Tasks, repeat
from nats_taskflow.text import counted

Read = Callable[[int, int], Awaitable[list[OutboxMessage]]]
Fresh = Callable[[Batch], list[OutboxMessage]]
_RETRY = 0.1
_WINDOW_BYTES = 4 * 1024 * 1024
_TRY_AGAIN = 10.0
"""Seconds between tries to publish what was refused for its own sake: an operator may raise a limit at any time."""
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
        self._engine = engine
        self._read = read
        self._heard = heard
        self._fresh = fresh
        self._window = window
        self._chunk = chunk
        self._last_read = self._marked = self._sent_up_to = 0
        self.stored = 0
        """How many rows the broker has stored since the start, repeats among them."""
        self._more = True
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()
        self._unmarked = False
        self._reading = False
        self._log = structlog.get_logger("relay").bind(outlet=outlet)
        self._lanes = OrderedPublisher(bus, stored=self._stored, log=self._log)
        engine.listen(self._committed)

    @property
    def in_flight(self) -> int:
        """How many rows are read but not stored by the broker."""
        return len(self._lanes.open)

    @property
    def set_aside(self) -> int:
        """How many lanes have a head that the broker refuses for its own sake."""
        return len(self._lanes.refused)

    @property
    def trouble(self) -> str:
        """Why the broker does not take something that is committed; empty while it takes everything."""
        aside = self.set_aside
        of = counted(aside, "flow")
        refused = f"the broker refuses the events of {of} for their own sake (the log names them); the others go on" if aside else ""
        return "; ".join(filter(None, (self._lanes.trouble, refused)))

    @property
    def idle(self) -> bool:
        """Whether everything committed so far is published."""
        return self._is_sent and not self._lanes.refused and not self._lanes.aside

    @property
    def _is_sent(self) -> bool:
        """Whether everything committed so far is published, but for what is set aside."""
        return not self._more and not self._reading and not self._lanes.open

    @property
    def _has_room(self) -> bool:
        """Whether more may be read."""
        return len(self._lanes.open) < self._window and self._lanes.open_bytes < _WINDOW_BYTES

    async def run(self) -> None:
        """Publish until cancelled."""
        self._last_read = self._marked = self._sent_up_to = await self._engine.store.published(self.outlet)
        async with Tasks() as tasks:
            for step in (self._publish, self._mark_later, self._try_again_later, self._catch_up):
                tasks.start(repeat(step, f"relay of {self.outlet}"), f"relay of {self.outlet}")

    async def _publish(self) -> None:
        """Read what is committed, or wait for more."""
        self._woken.clear()
        if self._more and self._has_room:
            await self._fill()
        else:
            await self._woken.wait()

    async def drain(self, timeout: float) -> bool:
        """Wait until everything committed is published, at most `timeout` seconds; then note how far it came. True: all of it."""
        try:
            async with asyncio.timeout(timeout):
                while not self._is_sent:
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
        kept_up = not self._more and not self._reading and self._has_room
        if self._fresh is None or not kept_up or batch.first_event != self._last_read + 1:
            self.hear()
            return
        try:
            for letter in self._fresh(batch):
                self._line_up(letter)
                self._last_read = letter.n
        except Exception:
            self.hear()  # what is missing is read
            raise

    async def _fill(self) -> None:
        """Read more rows into their lanes and start the lanes that were empty."""
        # What is committed while we read may not be in it: it is heard of, and read next.
        self._more, self._reading = False, True
        asked = min(self._window - len(self._lanes.open), self._chunk)
        try:
            letters = await self._read(self._last_read, asked)
        except Unavailable as later:
            self._log.warning("outlet_not_read", why=later.message)
            self._more = True
            await asyncio.sleep(_RETRY)
            return
        except BaseException:
            self._more = True
            raise
        finally:
            self._reading = False
        self._more = self._more or bool(letters)  # those that weigh much come in smaller numbers than asked for
        for letter in letters:
            self._line_up(letter)
            self._last_read = letter.n
        self._settled.set()

    def _line_up(self, letter: OutboxMessage) -> None:
        """Put a letter into its lane. One that cannot be read is reported and passed over: damage of one row holds back no other."""
        if letter.message is None:
            self._log.error("row_passed_over", n=letter.n, lane=letter.lane)
            self._sent_up_to = max(self._sent_up_to, letter.n)
            return
        self._lanes.put(letter, letter.message)

    def _stored(self, n: int, count: int) -> None:
        """Read on, now that the broker has stored letters, the last of them number `n`."""
        self.stored += count
        self._sent_up_to = max(self._sent_up_to, n)
        self._woken.set()
        self._settled.set()

    async def _try_again_later(self) -> None:
        """Rest, then publish again what was set aside."""
        await asyncio.sleep(_TRY_AGAIN)
        if not self._lanes.behind:  # however long one round takes, there is a rest before the next
            self.try_again()

    def try_again(self) -> None:
        """Publish again what was set aside, as soon as there is room."""
        self._lanes.behind |= dict.fromkeys(self._lanes.aside)
        self._settled.set()

    async def _catch_up(self) -> None:
        """Read on in a lane that was set aside: each time all that was read of one is stored, until it is where all others are."""
        while not (self._lanes.behind and self._has_room):
            self._settled.clear()
            await self._settled.wait()
        lane = next(iter(self._lanes.behind))
        del self._lanes.behind[lane]
        try:
            await self._take_back(lane)
        except Unavailable as later:
            self._log.warning("outlet_not_read", why=later.message)

    async def _take_back(self, lane: str) -> None:
        """Read a lane that was set aside, from where it was on, up to its next letters or to where all others are."""
        while lane in self._lanes.aside and self._lanes.is_empty(lane):
            rows = await self._read(self._lanes.aside[lane] - 1, self._chunk)
            following = rows[-1].n + 1 if rows else self._last_read + 1
            # Where it has caught up nothing is awaited before it is open again: what is committed from now on comes behind.
            own = [row for row in rows if row.lane == lane and row.n <= self._last_read]  # what is not read yet is lined up when it is
            self._lanes.take_back(lane, own, following if following <= self._last_read else None)
        self._settled.set()

    async def _mark_later(self) -> None:
        """Rest, then note progress where there is any."""
        await asyncio.sleep(_MARK_EVERY)
        await self._mark()

    async def _mark(self) -> None:
        """Note up to which row everything is published: the last one before the first that is not."""
        up_to = min([*self._lanes.open, *self._lanes.aside.values()], default=self._sent_up_to + 1) - 1
        if up_to <= self._marked:
            return

        def mark(transaction: Transaction) -> None:
            """Note the row."""
            transaction.mark_published(self.outlet, up_to)

        try:
            await self._engine.do(mark)
        except (FlowError, Refusal) as later:
            if not self._unmarked:  # once until it can be: what is not noted is published again after the next start
                self._log.warning("progress_not_noted", why=str(later))
            self._unmarked = True
        else:
            self._marked = up_to
            self._unmarked = False
