"""Run the worker: the one place that names the adapters (CONTRACT 7, 8)."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

import msgspec

from nats_taskflow import wiring
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.nats.options import nats_options
from nats_taskflow.bus.port import Bus, ClaimHolder
from nats_taskflow.config import Config
from nats_taskflow.doors.http.health import HealthServer
from nats_taskflow.errors import Defect, Refusal, StoreBroken, root_of
from nats_taskflow.observe.line_writer import LineWriter
from nats_taskflow.observe.log import configure_logging, logger
from nats_taskflow.observe.metrics import Metrics
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.store.port import Store
from nats_taskflow.store.sqlite.opening import MEMORY, take_values_as_they_are
from nats_taskflow.store.sqlite.place import absolute_path, check_place
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.tasks import LastResort
from nats_taskflow.version import program_version
from nats_taskflow.wire.subjects import DEAD_LETTERS, EVENTS, INBOUND, Subjects


async def run(
    config: Config,
    out: TextIO | None = None,
    stop: StopSignal | None = None,
    *,
    adopt: bool = False,
    greet: Callable[[], None] = lambda: None,
) -> int:
    """Run the worker until a signal stops it.

    Returns the exit code 0 or raises the `Refusal` with another.

    `out`: where the line goes that says that it is ready (stdout). `stop`: one that listens already. `adopt`: also where the consumers
    belong to another database; they are this one's then. `greet` is called when the worker is ready and has said so.
    """
    metrics = Metrics()
    configure_logging(config.log).count(metrics.log_records_lost.inc)
    log = logger("worker")
    log.info("worker.starting", version=program_version(), pid=os.getpid(), store=absolute_path(config.store.path))
    if stop is None:
        stop = StopSignal()
        stop.listen()
    take_values_as_they_are()
    lines = LineWriter(sys.stdout if out is None else out)
    if await stop.before(_check_broker(config, adopt=adopt)):
        with LastResort():
            async with _closing(await SqliteFlowStore.open(config.store.path)) as store:
                bus = JetStreamBus(nats_options(config.nats))
                try:
                    await _serve(config, store, bus, stop, lines, metrics, adopt=adopt, greet=greet)
                finally:
                    await bus.close()
    log.info("worker.stopped")
    return 0


async def _check_broker(config: Config, *, adopt: bool) -> bool:
    """Check the broker before a database is made for it; returns True.

    One that no worker may use would lie around, and be taken for the one in use. Raises the `Refusal` that stands against a worker.
    """
    path = config.store.path
    if path != MEMORY and not check_place(path).exists():
        await _prepare(config, ClaimHolder(database="a new one", store=absolute_path(path)), adopt=adopt, dry_run=True)
    return True


async def provision(config: Config, database: str | None = None, *, adopt: bool = False, set_limits: bool = False) -> int:
    """Make the streams and consumers that `run` needs, and end.

    Returns the exit code 0 or raises the `Refusal` with another.

    `database`: whose consumers they are from now on. `set_limits`: streams that are there get the limits of the settings, too.
    """
    configure_logging(config.log)
    for warning in await _prepare(config, ClaimHolder(database=database) if database else None, adopt=adopt, set_limits=set_limits):
        logger("provision").warning("topology.stream_at_risk", why=warning)
    logger("provision").info("topology.provisioned", streams=[INBOUND, EVENTS, DEAD_LETTERS])
    return 0


async def _prepare(
    config: Config, holder: ClaimHolder | None, *, adopt: bool, dry_run: bool = False, set_limits: bool = False
) -> list[str]:
    """Prepare the broker on a connection of its own; returns warnings.

    Raises the `Refusal` that stands against a worker there.
    """
    subjects = Subjects(config.subjects.prefix)
    streams, sources = topology(config, subjects, reply_bindings(config, subjects))
    bus = JetStreamBus(nats_options(config.nats))
    try:
        await bus.open()
        return await bus.prepare(streams, sources, holder=holder, adopt=adopt, dry_run=dry_run, set_limits=set_limits)
    finally:
        await bus.close()


async def migrate(path: str) -> None:
    """Bring the database at `path` to the newest schema, and leave it closed.

    Raises the `Refusal` that keeps a worker from it, too.
    """
    async with _closing(await SqliteFlowStore.open(path)):
        pass


@asynccontextmanager
async def _closing(store: Store) -> AsyncIterator[Store]:
    """Close the store at the end.

    What has ended the worker is its reason, also where the store then cannot be closed for it.
    """
    try:
        yield store
    except BaseException:
        try:
            await store.close()
        except StoreBroken as too:
            logger("worker").warning("store.not_closed", why=str(too))
        raise
    await store.close()


async def _serve(
    config: Config, store: Store, bus: Bus, stop: StopSignal, out: LineWriter, metrics: Metrics, *, adopt: bool, greet: Callable[[], None]
) -> None:
    """Connect, compose and supervise; the health server spans all of it."""
    services = await stop.before(wiring.set_up(config, store, bus, MetricsRecorder(metrics), wiring.wall_clock, adopt=adopt))
    if services is None:
        return
    registry = metrics.registry if config.metrics.enabled else None
    health = HealthServer(config.http.bind, services.probes, registry) if config.http.address is not None else None
    address = await health.start() if health is not None else None

    def ready() -> None:
        """Print the one line that says where everything is (CONTRACT 8)."""
        facts = {"event": "ready", "pid": os.getpid(), "nats": bus.address, "store": store.place}
        line = {**facts, "http": f"http://{address}" if address is not None else "off"}
        out.write(msgspec.json.encode(line).decode() + "\n")
        if out.lost:
            logger("worker").warning("worker.ready_not_told")
        logger("worker").info("worker.ready", **{k: v for k, v in line.items() if k != "event"})
        greet()

    try:
        await wiring.supervise(config, services, stop, ready)
    except BaseExceptionGroup as group:
        raise _exit_reason(root_of(group)) from group
    finally:
        services.systemd.close()
        if health is not None:
            await health.stop()


def _exit_reason(failure: BaseException) -> BaseException:
    """Return the refusal that ends the worker.

    A defect is logged with its traceback, and one line says where to look.
    """
    if isinstance(failure, Refusal) and not isinstance(failure, Defect):
        return failure
    logger("worker").error("worker.failed", why=repr(failure), exc_info=failure)
    return Defect(f"the worker has failed: {failure}; the log has the traceback: please report it, and start the worker again")
