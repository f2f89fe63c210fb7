"""Give the services their life: start them in order in one group, wait for the end, stop them in the order that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import structlog

from nats_taskflow.bus.port import Bus, PublishFailed
from nats_taskflow.doors.micro_service import MicroService
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import BusLost, StoreBroken, Unavailable
from nats_taskflow.observe.log import LogEvent
from nats_taskflow.observe.probes import WorkerProbes
from nats_taskflow.observe.systemd import Systemd
from nats_taskflow.observe.trace import Tracing
from nats_taskflow.services.consumer import Consumer
from nats_taskflow.services.dispatcher import Dispatcher
from nats_taskflow.services.pruner import Pruner
from nats_taskflow.services.relay import Relay
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.services.topology_watch import TopologyWatch
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.tasks import Tasks, heed_cancellation

_BROKER_AWAY = 1.0
"""Seconds to try to publish the rest at the stop while the broker is away: the outbox keeps it for the next start."""


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that runs, ready-made."""

    engine: Engine
    bus: Bus
    waits: WaitEngine
    consumers: Sequence[Consumer]
    relays: Sequence[Relay]
    dispatcher: Dispatcher
    pruner: Pruner
    inspector: TopologyWatch
    api: MicroService
    probes: WorkerProbes
    systemd: Systemd
    tracing: Tracing | None = None


class Supervisor:
    """Runs the services. Times are seconds: `startup_drain` and `drain` bound the start's and the stop's catching up."""

    def __init__(self, services: Services, *, version: str, tick_interval: float, startup_drain: float, drain: float) -> None:
        self._services = services
        self._version = version
        self._tick_interval = timedelta(seconds=tick_interval)
        self._startup_drain = startup_drain
        self._drain = drain
        self._stopping = asyncio.Event()
        self._log = structlog.get_logger("worker")

    async def run(self, stop: StopSignal, ready: Callable[[], None]) -> None:
        """Run until `stop` is asked. Raises the `Refusal` that ended it otherwise (`BusLost`, `StoreBroken`, …)."""
        its = self._services
        async with Tasks() as tasks:
            committing = tasks.start(its.engine.run(), "engine")
            background = [tasks.start(its.probes.run(), "probes"), tasks.start(its.systemd.watch(), "watchdog")]
            background += [tasks.start(relay.run(), "relay") for relay in its.relays]
            background.append(tasks.start(its.probes.watch_backlog(), "backlog"))
            background.append(tasks.start(its.probes.watch_store(), "survey"))
            if its.tracing is not None:
                background.append(tasks.start(its.tracing.run(), "tracing"))
            await self._recover()
            pulls = [tasks.start(consumer.run(), "consumer") for consumer in its.consumers]
            timers = tasks.start(self._run_timers(), "timers")
            background.append(tasks.start(self._caught_up(), "catching up"))
            background.append(tasks.start(its.dispatcher.run(), "dispatcher"))
            background.append(tasks.start(its.pruner.run(), "pruner"))
            background.append(tasks.start(its.inspector.run(), "inspector"))
            await its.bus.serve(its.api.service(self._version), its.api.handle)
            heed_cancellation()  # a failure, which cancels this too: it would say that the worker is ready while nothing of it runs
            its.probes.is_started = True
            ready()
            its.systemd.ready(f"Deciding what comes from {its.bus.address}")
            await self._ended(stop)
            its.probes.is_stopping = True
            its.systemd.stopping("Finishing what is in hand, publishing what is committed")
            self._log.info(LogEvent.STOPPING)
            await self._stop(pulls, timers)
            its.engine.close()
            await committing
            for task in background:
                task.cancel()
            if its.tracing is not None:
                await asyncio.wait(background)
                await its.tracing.close()

    async def _recover(self) -> None:
        """Find out what the last run had in hand. Raises `BusLost` when the broker does not say, `StoreBroken` when it cannot be noted."""
        try:
            for consumer in self._services.consumers:
                await consumer.recover()
        except PublishFailed as silent:
            message = f"NATS does not tell where the consumer stands ({silent}): is JetStream up? Start again"
            raise BusLost(message) from silent
        except Unavailable as full:
            # As where the database cannot even be opened: nobody could tell yet that the worker waits for room.
            message = f"what the last run had in hand cannot be noted: {full.message}; make room on the disk, then start again"
            raise StoreBroken(message) from full

    async def _ended(self, stop: StopSignal) -> None:
        """Return when a stop is asked; raise `BusLost` when the broker is gone for good."""
        asked = asyncio.ensure_future(stop.asked.wait())
        ends: set[asyncio.Future[Any]] = {asked, self._services.bus.lost}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        if not stop.asked.is_set():
            message = f"NATS is lost for good: {self._services.bus.lost.result()}; restart the worker once it is back"
            raise BusLost(message)

    async def _run_timers(self) -> None:
        """Let time act, once the backlog of the start is decided: a reply that came before a deadline wins (SEMANTICS R9)."""
        drained = asyncio.ensure_future(self._drained())  # no `gather`: dropped after its cancellation, one complains in the log
        stopping = asyncio.ensure_future(self._stopping.wait())
        catching_up: set[asyncio.Future[Any]] = {drained, stopping}
        try:
            _, late = await asyncio.wait(catching_up, timeout=self._startup_drain, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in catching_up:
                future.cancel()
        if drained in late and not self._stopping.is_set():
            self._log.warning(LogEvent.TIMERS_FIRST, startup_drain=self._startup_drain)
        await self._services.waits.run(self._tick_interval, self._stopping)

    async def _drained(self) -> None:
        """Return when no consumer has a backlog from before the start."""
        for consumer in self._services.consumers:
            await consumer.drained()

    async def _caught_up(self) -> None:
        """Forget that the database is a copy once it knows all that the broker has; until then, each start asks again."""
        engine = self._services.engine
        if engine.store.restored:
            await self._drained()
            with contextlib.suppress(Unavailable):  # the next start finds nothing missing, and forgets it then
                await engine.do(lambda transaction: transaction.forget_restored())

    async def _stop(self, pulls: Sequence[asyncio.Task[None]], timers: asyncio.Task[None]) -> None:
        """Stop taking in, let what is in hand get its outcome, publish what is committed."""
        its = self._services
        for pull in pulls:
            pull.cancel()
        self._stopping.set()
        await asyncio.wait({*pulls, timers})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain):  # a request that hangs is answered by its asker's own timeout
                await its.bus.stop_serving()
        for consumer in its.consumers:
            await consumer.finish(self._drain)
        for relay in its.relays:
            await relay.drain(self._drain if its.bus.connected else _BROKER_AWAY)
        await its.bus.flush()
