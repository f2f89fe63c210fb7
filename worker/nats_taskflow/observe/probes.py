"""Watch how the worker is: the event loop's lag, the database, the broker.

Health questions are answered from what was seen last.

Three loops, since the broker and a large database may be slow to answer: `WorkerProbes` each second, `BacklogProbe`, `StoreProbe`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog

from nats_taskflow.bus.port import Bus, ConsumerSpec, PublishFailed
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError
from nats_taskflow.observe.health import HealthCheck
from nats_taskflow.observe.recorder import MetricsRecorder, Sample, SlowSample
from nats_taskflow.tasks import repeat
from nats_taskflow.units import SECOND, Micros
from nats_taskflow.wire import capacity

_EVERY = 1.0
_BACKLOG_EVERY = 10.0
_SURVEY_EVERY = 15.0
_GROUPS = 10_000
_CLOCK: Micros = SECOND
"""How far apart the clocks of worker and broker may be: deadlines are judged by one of them, arrivals by the other."""
_STALE = 5.0
"""Seconds after which a database that has not answered, or a loop that has not come round, counts as hung."""


class Outlet(Protocol):
    """What is published from one outlet, as its relay knows it."""

    outlet: str
    stored: int

    @property
    def in_flight(self) -> int:
        """How many rows are read but not stored by the broker."""
        ...

    @property
    def set_aside(self) -> int:
        """How many flows have an event that the broker refuses for its own sake."""
        ...

    @property
    def trouble(self) -> str:
        """Why something committed is not published; empty while everything is."""
        ...


class WorkerProbes:
    """Samples the worker once a second, and answers the health questions.

    Those are `/livez`, `/readyz` and `/startupz`. `flaws` says what is wrong with the streams.
    """

    def __init__(
        self, engine: Engine, bus: Bus, recorder: MetricsRecorder, *, outlets: Sequence[Outlet], flaws: Callable[[], Sequence[str]]
    ) -> None:
        self._engine = engine
        self._bus = bus
        self._recorder = recorder
        self._outlets = outlets
        self._flaws = flaws
        self._answered = asyncio.get_running_loop().time()
        self._was_apart = False
        self._is_started = False
        self._is_stopping = False
        self._log = structlog.get_logger("probes")

    def on_ready(self, _address: str) -> None:
        """Answer from now on that the start is over."""
        self._is_started = True

    def on_stop(self) -> None:
        """Answer from now on that the worker is not ready."""
        self._is_stopping = True

    async def run(self) -> None:
        """Take a sample each second until cancelled."""
        await repeat(self._step, "probes")

    async def _step(self) -> None:
        """Rest, then take a sample. How late the rest ended is the event loop's lag."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(_EVERY)
        self._watch_clock()
        lag = max(loop.time() - began - _EVERY, 0.0)
        try:
            sample = await self.sample(lag)
        except FlowError as error:
            self._log.warning("store_unavailable", why=error.message)
            return
        self._answered = loop.time()
        self._recorder.sample(msgspec.structs.replace(sample, ready=all(check.ok for check in self.ready())))

    async def sample(self, lag: float) -> Sample:
        """Read everything that a gauge shows and that is quickly read."""
        store, now = self._engine.store, self._engine.clock()
        due, unpublished = await store.next_due(), await store.oldest_unpublished()
        return Sample(
            counts=await store.counts(),
            loop_lag=lag,
            overdue=_seconds_since(due, now),
            connected=self._bus.connected,
            writable=not self._engine.stalled,
            outbox=sum(outlet.in_flight for outlet in self._outlets),
            set_aside=sum(outlet.set_aside for outlet in self._outlets),
            outbox_age=_seconds_since(unpublished, now),
            published=sum(outlet.stored for outlet in self._outlets if outlet.outlet == "events"),
            reconnects=self._bus.reconnects,
            dropped=self._bus.dropped,
            busy=self._engine.batches_postponed,
            room=await store.room(),
        )

    def live(self) -> Sequence[HealthCheck]:
        """Check whether the process works.

        Its loop comes round and its database thread answers. Never about NATS.
        """
        silent = asyncio.get_running_loop().time() - self._answered
        return [HealthCheck("database", silent < _STALE + _EVERY, f"no answer for {silent:.0f} s")]

    def ready(self) -> Sequence[HealthCheck]:
        """Check whether it does its work.

        Everything of `live`, started, connected, able to store, and not stopping.
        """
        flaws = self._flaws()
        return [
            *self.live(),
            *self.started(),
            HealthCheck("nats", self._bus.connected, "not connected; reconnecting", remark=capacity.remark(self._bus.max_payload)),
            HealthCheck("deliveries", not self._bus.trouble, self._bus.trouble),
            HealthCheck("clock", not self._clock_apart, self._clock_apart),
            HealthCheck("streams", not flaws, "; ".join(flaws)),
            *(HealthCheck(outlet.outlet, not outlet.trouble, f"not published: {outlet.trouble}") for outlet in self._outlets),
            HealthCheck("store", not self._engine.stalled, "the database takes no changes (is the disk full?)"),
            HealthCheck("running", not self._is_stopping, "stopping"),
        ]

    def started(self) -> Sequence[HealthCheck]:
        """Check whether recovery is over."""
        return [HealthCheck("started", self._is_started, "still starting")]

    @property
    def _clock_apart(self) -> str:
        """How far the clock is from the broker's, where that is more than deadlines bear.

        Empty otherwise.
        """
        offset = self._bus.offset
        if abs(offset) <= _CLOCK:
            return ""
        side = "behind" if offset > 0 else "ahead of"
        return f"this machine's clock is {abs(offset) / SECOND:.1f} s {side} the broker's: run NTP on both"

    def _watch_clock(self) -> None:
        """Log once that the clocks are apart, and again only after they were not."""
        apart = self._clock_apart
        if apart and not self._was_apart:
            self._log.warning("clock_apart", why=apart)
        self._was_apart = bool(apart)


class BacklogProbe:
    """Asks the broker now and then how many messages wait in the streams."""

    def __init__(self, bus: Bus, sources: Sequence[ConsumerSpec], recorder: MetricsRecorder) -> None:
        self._bus = bus
        self._sources = sources
        self._recorder = recorder
        self._log = structlog.get_logger("probes")

    async def run(self) -> None:
        """Ask until cancelled."""
        await repeat(self._step, "backlog")

    async def _step(self) -> None:
        """Ask, then rest."""
        try:
            await self.count()
        except PublishFailed as error:  # the gauges keep what was last known; another one shows whether the broker is connected
            self._log.debug("backlog_unknown", why=str(error))
        await asyncio.sleep(_BACKLOG_EVERY)

    async def count(self) -> None:
        """Count what waits, by consumer. Raises `PublishFailed`."""
        pending = Counter[str]()
        for source in self._sources:
            pending[source.consumer] += (await self._bus.backlog(source)).pending
        self._recorder.sample_backlog(pending)


class StoreProbe:
    """Asks the database now and then for what takes long to read.

    On its own connection: a timer must not wait for it.
    """

    def __init__(self, engine: Engine, recorder: MetricsRecorder) -> None:
        self._engine = engine
        self._recorder = recorder
        self._log = structlog.get_logger("probes")

    async def run(self) -> None:
        """Ask until cancelled."""
        await repeat(self._step, "survey")

    async def _step(self) -> None:
        """Ask, then rest."""
        try:
            self._recorder.sample_slow(await self.sample())
        except FlowError as error:  # the gauges keep what was last known; `WorkerProbes` logs that the database does not answer
            self._log.debug("survey_failed", why=error.message)
        await asyncio.sleep(_SURVEY_EVERY)

    async def sample(self) -> SlowSample:
        """Read the oldest and the largest of what is kept.

        Waits, timers, held replies, dead letters.
        """
        now, reads = self._engine.clock(), self._engine.store.queries
        gauges = await reads.gauges(now)
        held = (await reads.held_replies(limit=1, payloads=False)).items
        letters: dict[str, int] = {}
        for group in await reads.letter_groups(_GROUPS):
            letters[group.reason] = letters.get(group.reason, 0) + group.count - group.replayed
        return SlowSample(
            overdue=gauges.due,
            wait_age=_seconds_since(gauges.oldest_wait[1] if gauges.oldest_wait else None, now),
            held_age=_seconds_since(held[0].arrived_us if held else None, now),
            letters=letters,
            most={quota: used for quota, (_, used) in gauges.most.items()},
        )


def _seconds_since(moment: Micros | None, now: Micros) -> float:
    return 0.0 if moment is None else max(now - moment, 0) / SECOND
