"""The whole worker in memory: one life after another on one database and one broker, and what is due in them, for a virtual clock."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator

from nats_taskflow.bus.memory.broker import MemoryBroker
from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.bus.port import ConsumerSpec
from nats_taskflow.config import Config
from nats_taskflow.store.invariants import Evidence, Ledger, LedgerMessage, violations
from nats_taskflow.testing.clock import Clock
from nats_taskflow.testing.database import InlineConnection, InlineStore, Killed, copied, fresh
from nats_taskflow.testing.loop_time import of_worker
from nats_taskflow.testing.worker_run import WorkerRun
from nats_taskflow.units import Micros

_MOST_RETRIES = 1000
"""How often in a row time stops for the worker's retries. What has not gone through by then will not before somebody helps."""

# What time acts on by itself: timers and deadlines, requests to delegates that nobody took, replies that nobody came for.
_NEXT = """
WITH ended (at) AS (SELECT updated_us + ?2 + 1 FROM flows WHERE status IN ('cancelled', 'finished', 'failed'))
SELECT min(at) FROM (
  SELECT due_us AS at FROM flows
  UNION ALL SELECT next_us FROM outgoing WHERE is_sent = 0
  UNION ALL SELECT expires_us FROM held
  UNION ALL SELECT at FROM ended
) WHERE at > ?1
"""
_SERVED = """
WITH ended (at) AS (SELECT updated_us + ?2 + 1 FROM flows WHERE status IN ('cancelled', 'finished', 'failed'))
SELECT 1 FROM held WHERE expires_us <= ?1 UNION ALL SELECT 1 FROM ended WHERE at <= ?1 LIMIT 1
"""


class MemoryWorker:
    """A worker whose database and broker outlive it. `bus` makes its next connection to the broker."""

    def __init__(self, config: Config, clock: Clock, broker: MemoryBroker) -> None:
        self.config = config
        self.broker = broker
        self._clock = clock
        self._database: sqlite3.Connection
        self._inline: InlineConnection
        self._bus: MemoryBus
        self._store: InlineStore
        self._life: WorkerRun | None = None
        self._pruning: set[asyncio.Task[dict[str, int]]] = set()
        self._retries = 0

    async def create(self) -> None:
        """Make the database."""
        self._database = await fresh()

    async def start(self, bus: MemoryBus) -> None:
        """Start the next worker on what is left of the last one."""
        self._bus = bus
        self._store, self._inline = await InlineStore.on(self._database)
        self._inline.killed = bus.disconnect
        self._life = WorkerRun(self.config, self._store, bus, clock=self._clock)
        await self._life.begin(context=of_worker())

    async def stop(self) -> None:
        """Stop it as an operator does."""
        if self._life is not None:
            self._life.ask_to_stop()
            await self._clock.loop.rest()
            await self._life.ended()
            await self._bus.close()
            await self._store.close()
            self._life = None

    async def kill(self) -> None:
        """Kill it: from now on it reaches neither broker nor database, and its memory is gone."""
        if self._life is not None:
            self._bus.disconnect()
            self._inline.dead = True
            await self._life.cut()
            await self._bus.close()
            self._life = None

    def close(self) -> None:
        """Close the database, after the last worker."""
        self._database.close()

    def kill_after(self, statements: int) -> None:
        """Kill it in the midst of its work, after this many more SQL statements."""
        self._inline.fuse = statements

    @property
    def alive(self) -> bool:
        """Whether a worker runs."""
        return self._life is not None and not self._life.over and not self._inline.dead

    async def settled(self) -> None:
        """Return when nothing more happens without time passing; raises what ended the worker, unless it was killed."""
        await self._clock.loop.rest()
        if self._life is None or self.alive:
            return
        failure = self._life.died_of
        await self.kill()
        if failure is not None and not self._inline_killed(failure):
            raise failure

    def _inline_killed(self, failure: BaseException) -> bool:
        """Tell whether the worker ended because its database was cut off: that is how it is killed."""
        return isinstance(failure, Killed) or self._inline.fuse is not None

    def next_due(self) -> Micros | None:
        """Return when the next thing after now is due: in the database, at the broker, or in the code under test."""
        now = self._clock()
        found = [self._clock.loop.next_timer(), *(consumer.next_due() for consumer in self.broker.consumers.values())]
        if self.alive:
            found.append(self._database.execute(_NEXT, (now, self.config.store.retain_terminal)).fetchone()[0])
            self._retries = self._retries + 1 if self._busy() else 0
            if 0 < self._retries <= _MOST_RETRIES:
                found.append(self._clock.loop.next_timer(of_worker=True))
        return min((at for at in found if at is not None and at > now), default=None)

    async def arrived(self) -> None:
        """Begin what is due now: the broker looks for what to deliver again, the worker for what has served."""
        self.broker.tick()
        if self.alive and self._database.execute(_SERVED, (self._clock(), self.config.store.retain_terminal)).fetchone() is not None:
            assert self._life is not None
            task = asyncio.get_running_loop().create_task(self._life.services.pruner.prune(), context=of_worker())
            self._pruning.add(task)
            task.add_done_callback(self._pruned)

    def _pruned(self, task: asyncio.Task[dict[str, int]]) -> None:
        """Take notice: what could not be deleted is deleted when the pruner comes round by itself."""
        self._pruning.discard(task)
        if not task.cancelled():
            task.exception()

    def _busy(self) -> bool:
        """Tell whether the worker has something in hand that waits for time to pass: what it failed at, it tries again."""
        assert self._life is not None
        its = self._life.services
        in_hand = its.waits.held_back or its.engine.queued or its.engine.stalled or any(one.in_hand for one in its.consumers)
        return bool(in_hand) or not all(relay.idle for relay in its.relays)

    async def broken_promises(self) -> list[str]:
        """Look at everything that always holds of database and streams (`nats_taskflow.store.invariants`), and say what does not."""
        rest = self.alive and not self._busy()
        if rest and self._life is not None:
            for relay in self._life.services.relays:
                await relay.drain(1.0)  # nothing is left to publish: it notes how far it has come
        events, letters = self._ledger("TASKFLOW_EVT"), self._ledger("TASKFLOW_DLQ")
        database = copied(self._database)
        try:
            now = self._clock()
            evidence = Evidence(database, now=now, settled=rest, events=events, letters=letters)
            return [str(violation) for violation in violations(evidence)]
        finally:
            database.close()
            events.close()
            letters.close()

    def unsettled(self, source: ConsumerSpec) -> int:
        """Count the messages of a stream without an outcome."""
        backlog = self.broker.consumer(source).backlog()
        return backlog.pending + backlog.delivered - backlog.floor

    def _ledger(self, stream: str) -> Ledger:
        """Read what a stream keeps."""
        return Ledger(self._messages(stream), first=self._first(stream))

    def _messages(self, stream: str) -> Iterator[LedgerMessage]:
        """Give the messages of a stream."""
        for stored in self.broker.streams[stream].messages.values():
            yield LedgerMessage(stored.seq, stored.subject, stored.headers, stored.body)

    def _first(self, stream: str) -> int:
        """Return the lowest place that a stream keeps."""
        has = self.broker.streams[stream]
        return min(has.messages, default=has.last_seq + 1)
