"""The whole worker in memory, and what is due in it, for a virtual clock.

One run of the worker after another uses the same database and the same broker.
"""

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
"""How often in a row time stops for the worker's retries. What still fails then needs help from outside."""

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
    """A worker whose database and broker outlive it."""

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
        """Start the next worker on the database and broker that are left.

        `bus` is its connection to the broker.
        """
        self._bus = bus
        self._store, self._inline = await InlineStore.on(self._database)
        self._inline.killed = bus.disconnect
        self._life = WorkerRun(self.config, self._store, bus, clock=self._clock)
        await self._life.begin(context=of_worker())

    async def stop(self) -> None:
        """Stop the worker as an operator does."""
        if self._life is not None:
            self._life.ask_to_stop()
            await self._clock.loop.rest()
            await self._life.ended()
            await self._bus.close()
            await self._store.close()
            self._life = None

    async def kill(self) -> None:
        """Kill the worker.

        From now on it reaches neither broker nor database, and its memory is gone.
        """
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
        """Kill the worker in the midst of its work, after this many SQL statements."""
        self._inline.fuse = statements

    @property
    def alive(self) -> bool:
        """Whether a worker runs."""
        return self._life is not None and not self._life.over and not self._inline.dead

    async def settled(self) -> None:
        """Return when nothing more happens without time passing.

        Raises what ended the worker, unless it was killed.
        """
        await self._clock.loop.rest()
        if self._life is None or self.alive:
            return
        failure = self._life.died_of
        await self.kill()
        if failure is not None and not self._inline_killed(failure):
            raise failure

    def _inline_killed(self, failure: BaseException) -> bool:
        """Check whether the worker ended because its database was cut off: by a kill."""
        return isinstance(failure, Killed) or self._inline.fuse is not None

    def next_due(self) -> Micros | None:
        """Return when the next thing after now is due; None for never.

        It may be due in the database, at the broker, or in the code under test.
        """
        now = self._clock()
        times = [self._clock.loop.next_timer(), *(consumer.next_due() for consumer in self.broker.consumers.values())]
        if self.alive:
            times.append(self._database.execute(_NEXT, (now, self.config.store.retain_terminal)).fetchone()[0])
            self._retries = self._retries + 1 if self._busy() else 0
            if 0 < self._retries <= _MOST_RETRIES:
                times.append(self._clock.loop.next_timer(of_worker=True))
        return min((at for at in times if at is not None and at > now), default=None)

    async def arrived(self) -> None:
        """Start what is due now: redelivery at the broker, pruning in the worker."""
        self.broker.tick()
        if self.alive and self._database.execute(_SERVED, (self._clock(), self.config.store.retain_terminal)).fetchone() is not None:
            assert self._life is not None
            task = asyncio.get_running_loop().create_task(self._life.services.pruner.prune(), context=of_worker())
            self._pruning.add(task)
            task.add_done_callback(self._pruned)

    def _pruned(self, task: asyncio.Task[dict[str, int]]) -> None:
        """Retrieve the exception, or asyncio logs it.

        The pruner tries again by itself.
        """
        self._pruning.discard(task)
        if not task.cancelled():
            task.exception()

    def _busy(self) -> bool:
        """Check whether the worker has work in hand that waits for time to pass.

        That is work that failed and is retried.
        """
        assert self._life is not None
        services = self._life.services
        in_hand = (
            services.waits.held_back or services.engine.queued or services.engine.stalled or any(one.in_hand for one in services.consumers)
        )
        return bool(in_hand) or not all(relay.idle for relay in services.relays)

    async def broken_promises(self) -> list[str]:
        """Check all invariants of database and streams, and return what is violated.

        They are those of `nats_taskflow.store.invariants`.
        """
        rest = self.alive and not self._busy()
        if rest and self._life is not None:
            for relay in self._life.services.relays:
                await relay.drain(1.0)  # nothing is left to publish: it stores its position
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
        """Count the messages of a stream that are not settled yet."""
        backlog = self.broker.consumer(source).backlog()
        return backlog.pending + backlog.delivered - backlog.floor

    def _ledger(self, stream: str) -> Ledger:
        return Ledger(self._messages(stream), first=self._first(stream))

    def _messages(self, stream: str) -> Iterator[LedgerMessage]:
        for stored in self.broker.streams[stream].messages.values():
            yield LedgerMessage(stored.seq, stored.subject, stored.headers, stored.body)

    def _first(self, stream: str) -> int:
        has = self.broker.streams[stream]
        return min(has.messages, default=has.last_seq + 1)
