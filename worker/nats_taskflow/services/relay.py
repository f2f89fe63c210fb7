"""Publish committed rows in order, without gaps, at least once.

The rows are journal entries, published as events, and dead letters. They are read as the database committed them, so nothing uncommitted
is ever published. `OrderedPublisher` sends them. It has at most `window` rows, and nothing is read while those weigh more than 4 MiB: that
bounds memory after an outage. How far the outlet has come is stored now and then. What lies between is published again after a crash, byte
for byte the same, under the same id.
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

ReadRows = Callable[[int, int], Awaitable[list[OutboxMessage]]]
RowsOfBatch = Callable[[Batch], list[OutboxMessage]]
_RETRY = 0.1
_WINDOW_BYTES = 4 * 1024 * 1024
_TRY_AGAIN = 10.0
"""Seconds between tries to publish a row that was refused for its own sake: an operator may raise a limit at any time."""
_MARK_EVERY = 1.0
"""Seconds between marks of how far the outlet has come: each costs a transaction."""


class Relay:
    """Empties one outlet (`events` or `dead_letters`).

    `read(after, limit)` returns its rows; the relay asks for at most `chunk` at a time. `adds(batch)` returns whether a commit added any.
    `rows_of(batch)` makes the rows from the batch itself, so that a relay that has kept up need not read what was just committed.
    """

    def __init__(
        self,
        outlet: str,
        bus: Bus,
        engine: Engine,
        *,
        read: ReadRows,
        adds: Callable[[Batch], bool],
        rows_of: RowsOfBatch | None = None,
        window: int = 4096,
        chunk: int = 64,
    ) -> None:
        self.outlet = outlet
        self._engine = engine
        self._read = read
        self._adds = adds
        self._rows_of = rows_of
        self._window = window
        self._chunk = chunk
        self._last_read = self._marked = self._sent_up_to = 0
        self.stored = 0
        """How many rows the broker has stored since the start, repeats among them."""
        self._more = True
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()
        self._mark_failed = False
        self._reading = False
        self._log = structlog.get_logger("relay").bind(outlet=outlet)
        self._publisher = OrderedPublisher(bus, on_stored=self._on_stored, log=self._log)
        engine.listen(self._on_commit)

    @property
    def in_flight(self) -> int:
        """How many rows are read but not stored by the broker."""
        return len(self._publisher.pending)

    @property
    def set_aside(self) -> int:
        """How many lanes have a row that the broker refuses for its own sake."""
        return len(self._publisher.refused)

    @property
    def trouble(self) -> str:
        """Why something committed is not published; empty while everything is."""
        if not self.set_aside:
            return self._publisher.trouble
        flows = counted(self.set_aside, "flow")
        refused = f"the broker refuses the events of {flows} for their own sake (the log names them); the others go on"
        return "; ".join(filter(None, (self._publisher.trouble, refused)))

    @property
    def idle(self) -> bool:
        """Whether everything committed so far is published."""
        return self._is_all_sent and not self._publisher.refused and not self._publisher.set_aside

    @property
    def _is_all_sent(self) -> bool:
        # What is set aside does not count.
        return not self._more and not self._reading and not self._publisher.pending

    @property
    def _has_room(self) -> bool:
        return len(self._publisher.pending) < self._window and self._publisher.pending_bytes < _WINDOW_BYTES

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
        """Wait until everything committed is published, at most `timeout` seconds.

        Then marks how far the outlet came. Returns whether everything is published.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._is_all_sent:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            self._log.warning("not_everything_published", in_flight=self.in_flight)
        await self._mark()
        return self.idle

    def wake(self) -> None:
        """Read on, since rows were added.

        Batches do this by themselves. Housekeeping that adds rows has to call it.
        """
        self._more = True
        self._woken.set()

    def _on_commit(self, batch: Batch) -> None:
        """Queue the rows of a committed batch, or have them read from the store later.

        They are taken from the batch only where everything before it is queued.
        """
        if not self._adds(batch):
            return
        kept_up = not self._more and not self._reading and self._has_room
        if self._rows_of is None or not kept_up or batch.first_event != self._last_read + 1:
            self.wake()
            return
        try:
            for row in self._rows_of(batch):
                self._enqueue(row)
                self._last_read = row.n
        except Exception:
            self.wake()  # the rows that are missing are read
            raise

    async def _fill(self) -> None:
        """Read more rows and queue them."""
        # What is committed meanwhile may not be among them: `_on_commit` sets `_more` again.
        self._more, self._reading = False, True
        limit = min(self._window - len(self._publisher.pending), self._chunk)
        try:
            rows = await self._read(self._last_read, limit)
        except Unavailable as error:
            self._log.warning("outlet_not_read", why=error.message)
            self._more = True
            await asyncio.sleep(_RETRY)
            return
        except BaseException:
            self._more = True
            raise
        finally:
            self._reading = False
        self._more = self._more or bool(rows)  # heavy rows come in smaller numbers than asked for
        for row in rows:
            self._enqueue(row)
            self._last_read = row.n
        self._settled.set()

    def _enqueue(self, row: OutboxMessage) -> None:
        """Queue a row. An unreadable one is logged and skipped: it holds back no other."""
        if row.message is None:
            self._log.error("row_passed_over", n=row.n, lane=row.lane)
            self._sent_up_to = max(self._sent_up_to, row.n)
            return
        self._publisher.put(row, row.message)

    def _on_stored(self, n: int, count: int) -> None:
        """Read on, now that the broker has stored `count` rows, the last of them row `n`."""
        self.stored += count
        self._sent_up_to = max(self._sent_up_to, n)
        self._woken.set()
        self._settled.set()

    async def _try_again_later(self) -> None:
        await asyncio.sleep(_TRY_AGAIN)
        if not self._publisher.to_read_again:  # else the last round is not over: there is a rest between two
            self.try_again()

    def try_again(self) -> None:
        """Publish what was set aside again, as soon as there is room."""
        self._publisher.to_read_again |= dict.fromkeys(self._publisher.set_aside)
        self._settled.set()

    async def _catch_up(self) -> None:
        """Read on in one set-aside lane, once its rows read so far are stored.

        That is repeated until the lane is where all others are.
        """
        while not (self._publisher.to_read_again and self._has_room):
            self._settled.clear()
            await self._settled.wait()
        lane = next(iter(self._publisher.to_read_again))
        del self._publisher.to_read_again[lane]
        try:
            await self._take_back(lane)
        except Unavailable as error:
            self._log.warning("outlet_not_read", why=error.message)

    async def _take_back(self, lane: str) -> None:
        """Read a set-aside lane until it has rows to publish or is where the others are."""
        while lane in self._publisher.set_aside and self._publisher.is_empty(lane):
            rows = await self._read(self._publisher.set_aside[lane] - 1, self._chunk)
            following = rows[-1].n + 1 if rows else self._last_read + 1
            # No await from here on: where the lane has caught up, what is committed later must come behind these rows.
            own = [row for row in rows if row.lane == lane and row.n <= self._last_read]  # the rest is put when it is read in its turn
            self._publisher.take_back(lane, own, following if following <= self._last_read else None)
        self._settled.set()

    async def _mark_later(self) -> None:
        await asyncio.sleep(_MARK_EVERY)
        await self._mark()

    async def _mark(self) -> None:
        """Store up to which row everything is published."""
        up_to = min([*self._publisher.pending, *self._publisher.set_aside.values()], default=self._sent_up_to + 1) - 1
        if up_to <= self._marked:
            return

        def mark(transaction: Transaction) -> None:
            transaction.mark_published(self.outlet, up_to)

        try:
            await self._engine.do(mark)
        except (FlowError, Refusal) as error:
            if not self._mark_failed:  # log once until it works: what is not marked is published again after the next start
                self._log.warning("progress_not_noted", why=str(error))
            self._mark_failed = True
        else:
            self._marked = up_to
            self._mark_failed = False
