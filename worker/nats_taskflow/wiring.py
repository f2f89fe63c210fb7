"""Wire the services to a store and a bus, whichever adapters these are.

For the worker, for `taskflow dev` and for the test kit.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.port import Bus, ClaimHolder, ConsumerSpec
from nats_taskflow.config import Config
from nats_taskflow.doors.admin.backup_process import BackupProcess
from nats_taskflow.doors.admin.dead_letters import DeadLetters, ReplayCount
from nats_taskflow.doors.admin.interventions import Interventions
from nats_taskflow.doors.admin.queries import Queries
from nats_taskflow.doors.admin.service import AdminService
from nats_taskflow.doors.api import Api
from nats_taskflow.doors.micro_service import MicroService
from nats_taskflow.engine.engine import Clock, Engine
from nats_taskflow.engine.id_mint import IdMint
from nats_taskflow.engine.policy import policy_of, quota_of
from nats_taskflow.engine.reader import make_reader
from nats_taskflow.errors import ConfigError
from nats_taskflow.observe.health import HealthCheck
from nats_taskflow.observe.log import logger
from nats_taskflow.observe.probes import BacklogProbe, StoreProbe, WorkerProbes
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.observe.span import SpanCount, SpanSink
from nats_taskflow.observe.systemd import Systemd
from nats_taskflow.observe.trace import SpanRecorder
from nats_taskflow.services.consumer import Consumer, decided_until
from nats_taskflow.services.dispatcher import Dispatcher
from nats_taskflow.services.outbox import events_of_batch, read_dead_letters, read_events
from nats_taskflow.services.pruner import Pruner
from nats_taskflow.services.relay import Relay
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.services.supervisor import Supervisor, WorkerService
from nats_taskflow.services.topology_watch import TopologyWatch
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.store.port import Store
from nats_taskflow.units import SECOND, Micros
from nats_taskflow.version import program_version
from nats_taskflow.wire import capacity
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import Subjects

REMEMBERED_TIMES = 2.0
"""A message or id is remembered this many times as long as its stream keeps it, should somebody raise the stream's age meanwhile."""


Ready = Callable[[], Sequence[HealthCheck]]


_BIG_ROWS = 32
"""Dead letters read at a time: each may weigh as much as a message."""


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that runs, ready-made. `tracing`: None where it is off."""

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
    backlog: BacklogProbe
    store_probe: StoreProbe
    systemd: Systemd
    tracing: SpanRecorder | None = None


def wall_clock() -> Micros:
    """Return the time in microseconds since the epoch."""
    return time.time_ns() // 1000


async def set_up(config: Config, store: Store, bus: Bus, recorder: MetricsRecorder, clock: Clock, *, adopt: bool = False) -> Services:
    """Connect, make what the worker needs at the broker, and wire the services.

    The adapters of store and bus may be any.
    """
    spans = open_spans(recorder.count_spans) if config.otel.enabled else None
    await bus.open()
    subjects = Subjects(config.subjects.prefix)
    bindings = reply_bindings(config, subjects)
    streams, sources = topology(config, subjects, bindings)
    holder = ClaimHolder(database=store.identity, host=socket.gethostname(), store=store.place, pid=str(os.getpid()))
    for warning in await bus.prepare(streams, sources, holder=holder, adopt=adopt):
        logger("worker").warning("topology.stream_at_risk", why=warning)
    services = compose(config, store, bus, bindings, sources, recorder, clock)
    if spans is None:
        return services
    return msgspec.structs.replace(services, tracing=SpanRecorder(services.engine, spans, recorder.count_spans))


def open_spans(count: SpanCount) -> SpanSink | None:
    """Open the exporter to the collector of the OTEL_* variables.

    None where they switch the SDK off.

    Raises `ConfigError` where the SDK is not installed, or its variables ask for something it cannot do.
    """
    try:
        from nats_taskflow.observe.otel import connect  # noqa: PLC0415  # not a line of OpenTelemetry is loaded where tracing is off
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != "opentelemetry":
            raise
        message = "otel.enabled needs OpenTelemetry, which is not installed: pip install 'nats-taskflow[otel]', or set otel.enabled = false"
        raise ConfigError(message) from missing
    return connect(count)


async def supervise(config: Config, services: Services, stop: StopSignal, ready: Callable[[], None]) -> None:
    """Run the services until `stop`; see `Supervisor`."""
    observers: dict[str, WorkerService] = {"probes": services.probes, "backlog": services.backlog, "survey": services.store_probe}
    observers["watchdog"] = services.systemd
    if services.tracing is not None:
        observers["tracing"] = services.tracing
    supervisor = Supervisor(
        services.engine,
        services.bus,
        consumers=services.consumers,
        relays=services.relays,
        timers=services.waits,
        observers=observers,
        background={"dispatcher": services.dispatcher, "pruner": services.pruner, "inspector": services.inspector},
        serve=partial(services.bus.serve, services.api.service(program_version()), services.api.handle),
        listeners=(services.probes, services.systemd),
        tick_interval=config.engine.tick_interval.seconds,
        startup_drain=config.engine.startup_drain.seconds,
        drain=config.engine.drain_timeout.seconds,
    )
    await supervisor.run(stop, ready)
    if services.tracing is not None:
        await services.tracing.close()


def compose(
    config: Config,
    store: Store,
    bus: Bus,
    bindings: ReplyBindings,
    sources: tuple[ConsumerSpec, ...],
    recorder: MetricsRecorder,
    clock: Clock,
) -> Services:
    """Wire the services to their adapters."""
    policy = capacity.lower(policy_of(config, bindings), bus.max_payload)
    mint, subjects = IdMint(), Subjects(config.subjects.prefix)
    engine = Engine(store, clock=clock, policy=policy, max_batch=config.engine.max_batch, timed=recorder.time_commit)
    engine.listen(recorder.count_batch)
    read = make_reader(subjects, bindings, mint, lambda: bus.offset, quota_of(config))
    consumers = [Consumer(bus, engine, s, read=read, count=recorder.count_outcome, recovered=store.recovered) for s in sources]
    events, dead_letters = _relays(store, bus, subjects, engine)
    relays = [events, dead_letters]
    deciders = [consumer for consumer, source in zip(consumers, sources, strict=True) if source.ends_waits]
    decided, first_kept = partial(decided_until, deciders), partial(_first_kept, bus, sources)
    inspector = TopologyWatch(bus, dict(zip(sources, consumers, strict=True)))
    probes = WorkerProbes(engine, bus, recorder, outlets=relays, flaws=lambda: inspector.flaws)
    remembered, ids = (int(age * REMEMBERED_TIMES) for age in (config.stream.max_age, config.stream.event_max_age))
    return Services(
        engine=engine,
        bus=bus,
        waits=WaitEngine(engine, on_moved=recorder.timer_lag, decided=decided, patience=int(config.engine.startup_drain)),
        consumers=consumers,
        relays=relays,
        pruner=Pruner(
            engine, first_kept, retain_us=config.store.retain_terminal, ids_us=ids, inbox_us=remembered, on_expired=dead_letters.wake
        ),
        inspector=inspector,
        api=_micro_service(store, bus, bindings, engine, recorder, probes, subjects, config),
        dispatcher=Dispatcher(bus, engine),
        probes=probes,
        backlog=BacklogProbe(bus, sources, recorder),
        store_probe=StoreProbe(engine, recorder),
        systemd=Systemd(os.environ, store.ping),
    )


def _relays(store: Store, bus: Bus, subjects: Subjects, engine: Engine) -> tuple[Relay, Relay]:
    """Wire what is published: events, and dead letters."""
    read = read_events(store, subjects)
    events = Relay("events", bus, engine, read=read, adds=lambda batch: bool(batch.events), rows_of=events_of_batch(subjects))
    letters, few = read_dead_letters(store, bus, subjects), _BIG_ROWS
    return events, Relay("dead_letters", bus, engine, read=letters, adds=lambda batch: batch.adds_dead_letters, window=2 * few, chunk=few)


async def _first_kept(bus: Bus, sources: Sequence[ConsumerSpec]) -> Mapping[str, int]:
    return {source.stream: await bus.first_kept(source.stream) for source in sources}


def _micro_service(
    store: Store,
    bus: Bus,
    bindings: ReplyBindings,
    engine: Engine,
    recorder: MetricsRecorder,
    probes: WorkerProbes,
    subjects: Subjects,
    config: Config,
) -> MicroService:
    """Wire the micro service, for agents and operators."""
    queries = admin_queries(store, bus, subjects, engine, probes.ready, config.nats.monitor_url)
    operators = admin_service(queries, store, bus, subjects, bindings, engine, recorder.count_replays)
    size, count, timed, meter = partial(getattr, bus, "max_payload"), recorder.count_outcome, recorder.time_command, quota_of(config)
    api = Api(engine, subjects, IdMint(), queries.explain_to_agent, watch=count, timed=timed, max_payload=size, meter=meter)
    carriers = tuple(binding.subject for binding in bindings.configured)
    return MicroService(api, operators, subjects, reply_topics=carriers, max_payload=size)


def admin_queries(store: Store, bus: Bus, subjects: Subjects, engine: Engine, ready: Ready, monitor_url: str = "") -> Queries:
    """Wire what operators may ask; `ready` says what keeps the worker from its work."""
    began = engine.clock()

    def about() -> dict[str, object]:
        """Say how this worker is."""
        up = (engine.clock() - began) // SECOND
        state = {"connected": bus.connected, "stalled": engine.stalled, "queued": engine.queued, "up_seconds": up}
        not_ready = [f"{check.name}: {check.reason}" for check in ready() if not check.ok]
        where = {"store": store.place, "nats": bus.address, "monitor_url": monitor_url}
        return {"pid": os.getpid(), **where, **state, "not_ready": not_ready}

    def room() -> int:
        return capacity.page_bytes(bus.max_payload)

    return Queries(store.queries, subjects, engine.clock, version=program_version(), about=about, room=room)


def admin_service(
    queries: Queries, store: Store, bus: Bus, subjects: Subjects, bindings: ReplyBindings, engine: Engine, counted: ReplayCount
) -> AdminService:
    """Wire what operators may ask for and do; `counted` hears of replays."""
    letters = DeadLetters(engine, bus, subjects, bindings.answers_on, counted)
    return AdminService(queries, Interventions(engine, IdMint().command_id, BackupProcess(store.place).copy), letters)
