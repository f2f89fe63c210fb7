"""Run the services: start them in order, and stop them so that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

import structlog

from nats_taskflow.bus.port import Bus, PublishFailed
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import BusLost, StoreBroken, Unavailable
from nats_taskflow.services.consumer import Consumer
from nats_taskflow.services.relay import Relay
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.tasks import Tasks, heed_cancellation

_BROKER_AWAY = 1.0
"""Seconds to try to publish the rest at the stop while the broker is away: the outbox keeps it for the next start."""


class WorkerService(Protocol):
    """One of the worker's loops."""

    async def run(self) -> None:
        """Work until cancelled, or until there is nothing to do."""
        ...


class LifecycleListener(Protocol):
    """Hears that the worker is ready, and that it is stopping."""

    def on_ready(self, address: str) -> None:
        """Take note that the worker is ready, and decides what comes from `address`."""
        ...

    def on_stop(self) -> None:
        """Take note that the worker takes in nothing more, and finishes what it has."""
        ...


class Supervisor:
    """Runs the services of one worker. `app` decides which these are.

    `observers` run from the first moment, `background` once the consumers are recovered. `serve` opens the door for requests. The
    listeners hear that the worker is ready before `ready` is called. Times are seconds: `startup_drain` bounds how long timers wait for
    the backlog of the start, `drain` each step of the stop.
    """

    def __init__(
        self,
        engine: Engine,
        bus: Bus,
        *,
        consumers: Sequence[Consumer],
        relays: Sequence[Relay],
        timers: WaitEngine,
        observers: Mapping[str, WorkerService],
        background: Mapping[str, WorkerService],
        serve: Callable[[], Awaitable[None]],
        listeners: Sequence[LifecycleListener],
        tick_interval: float,
        startup_drain: float,
        drain: float,
    ) -> None:
        self._engine = engine
        self._bus = bus
        self._consumers = consumers
        self._relays = relays
        self._timers = timers
        self._observers = observers
        self._background = background
        self._serve = serve
        self._listeners = listeners
        self._tick_interval = timedelta(seconds=tick_interval)
        self._startup_drain = startup_drain
        self._drain = drain
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger("worker")

    async def run(self, stop: StopSignal, ready: Callable[[], None]) -> None:
        """Run until a stop is asked for.

        Raises the `Refusal` that ended it otherwise (`BusLost`, `StoreBroken`, …).
        """
        async with Tasks() as tasks:
            committing = tasks.start(self._engine.run(), "engine")
            background = [tasks.start(service.run(), name) for name, service in self._observers.items()]
            background += [tasks.start(relay.run(), "relay") for relay in self._relays]
            await self._recover()
            pulls = [tasks.start(consumer.run(), "consumer") for consumer in self._consumers]
            timers = tasks.start(self._run_timers(), "timers")
            background.append(tasks.start(self._forget_restored(), "catching up"))
            background += [tasks.start(service.run(), name) for name, service in self._background.items()]
            await self._serve()
            heed_cancellation()  # a failure, which cancels this too: it would say that the worker is ready while nothing of it runs
            for listener in self._listeners:
                listener.on_ready(self._bus.address)
            ready()
            await self._wait_for_end(stop)
            for listener in self._listeners:
                listener.on_stop()
            self._log.info("worker.stopping")
            await self._stop(pulls, timers)
            self._engine.close()
            await committing
            for task in background:
                task.cancel()

    async def _recover(self) -> None:
        """Find out what the last run had in hand.

        Raises `BusLost` when the broker does not answer, `StoreBroken` when the store cannot note it.
        """
        try:
            for consumer in self._consumers:
                await consumer.recover()
        except PublishFailed as error:
            message = f"NATS does not tell where the consumer stands ({error}): is JetStream up? Start again"
            raise BusLost(message) from error
        except Unavailable as error:
            # As where the database cannot even be opened: nobody could tell yet that the worker waits for room.
            message = f"what the last run had in hand cannot be noted: {error.message}; make room on the disk, then start again"
            raise StoreBroken(message) from error

    async def _wait_for_end(self, stop: StopSignal) -> None:
        """Wait until a stop is asked for. Raises `BusLost` if the broker is gone for good."""
        requested = asyncio.ensure_future(stop.requested.wait())
        ends: set[asyncio.Future[Any]] = {requested, self._bus.lost}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            requested.cancel()
        if not stop.requested.is_set():
            message = f"NATS is lost for good: {self._bus.lost.result()}; restart the worker once it is back"
            raise BusLost(message)

    async def _run_timers(self) -> None:
        """Run the timers once the backlog of the start is decided.

        A reply that came before a deadline wins (SEMANTICS R9).
        """
        drained = asyncio.ensure_future(self._drained())  # no `gather`: dropped after its cancellation, one complains in the log
        stopping = asyncio.ensure_future(self._stopping.wait())
        catching_up: set[asyncio.Future[Any]] = {drained, stopping}
        try:
            _, late = await asyncio.wait(catching_up, timeout=self._startup_drain, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in catching_up:
                future.cancel()
        if drained in late and not self._stopping.is_set():
            self._log.warning("worker.timers_first", startup_drain=self._startup_drain)
        await self._timers.run(self._tick_interval, self._stopping)

    async def _drained(self) -> None:
        for consumer in self._consumers:
            await consumer.drained()

    async def _forget_restored(self) -> None:
        """Clear the mark of a restored copy once it has caught up with the broker.

        Until then, each start compares the copy with the broker again.
        """
        if self._engine.store.restored:
            await self._drained()
            with contextlib.suppress(Unavailable):  # the next start finds nothing missing, and forgets it then
                await self._engine.do(lambda transaction: transaction.forget_restored())

    async def _stop(self, pulls: Sequence[asyncio.Task[None]], timers: asyncio.Task[None]) -> None:
        """Stop taking in, let what is in hand get its outcome, publish what is committed."""
        for pull in pulls:
            pull.cancel()
        self._stopping.set()
        await asyncio.wait({*pulls, timers})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain):  # a request that hangs is answered by its asker's own timeout
                await self._bus.stop_serving()
        for consumer in self._consumers:
            await consumer.finish(self._drain)
        for relay in self._relays:
            await relay.drain(self._drain if self._bus.connected else _BROKER_AWAY)
        await self._bus.flush()
