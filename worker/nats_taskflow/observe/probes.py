"""Look at how the worker is, once a second: the event loop's lag, the database thread, the broker; and answer health questions from it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import structlog

from nats_taskflow.bus.port import Bus, ConsumerSpec, PublishFailed
from nats_taskflow.doors.http.health import Check
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError
from nats_taskflow.observe.log import LogEvent
from nats_taskflow.observe.recorder import MetricsRecorder, Sample, SlowSample
from nats_taskflow.services.relay import Relay
from nats_taskflow.services.topology_watch import TopologyWatch
from nats_taskflow.store.port import Store
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


class WorkerProbes:
    """What `/livez`, `/readyz` and `/startupz` ask."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        relays: Sequence[Relay],
        sources: Sequence[ConsumerSpec],
        inspector: TopologyWatch,
        tracker: MetricsRecorder,
        *,
        clock: Callable[[], Micros],
        engine: Engine,
    ) -> None:
        self._store = store
        self._bus = bus
        self._relays = relays
        self._inspector = inspector
        self._sources = sources
        self._tracker = tracker
        self._clock = clock
        self._engine = engine
        self._answered = asyncio.get_running_loop().time()
        self._apart = False
        self.is_started = False
        self.is_stopping = False
        self._log = structlog.get_logger("probes")

    async def run(self) -> None:
        """Look once a second until cancelled."""
        await repeat(self._step, "probes")

    async def _step(self) -> None:
        """Rest, then look."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(_EVERY)
        self._watch_clock()
        lag = max(loop.time() - began - _EVERY, 0.0)
        try:
            look = await self._look(lag)
        except FlowError as bad:
            self._log.warning("store_unavailable", why=bad.message)
            return
        self._answered = loop.time()
        self._tracker.looked(msgspec.structs.replace(look, ready=all(check.ok for check in self.ready())))

    async def watch_backlog(self) -> None:
        """Ask the broker now and then how much waits in the streams, until cancelled. Apart from `run`: it may be slow to answer."""
        await repeat(self._look_at_backlog, "backlog")

    async def _look_at_backlog(self) -> None:
        """Ask the broker, and rest."""
        pending = Counter[str]()
        try:
            for source in self._sources:
                pending[source.consumer] += (await self._bus.backlog(source)).pending
            self._tracker.backlog(pending)
        except PublishFailed as silent:  # what was last known stands; whether it is connected is on the page too
            self._log.debug("backlog_unknown", why=str(silent))
        await asyncio.sleep(_BACKLOG_EVERY)

    async def watch_store(self) -> None:
        """Ask the database now and then what takes it longer to say, until cancelled."""
        await repeat(self._look_at_store, "survey")

    async def _look_at_store(self) -> None:
        """Ask the database, and rest."""
        try:
            self._tracker.surveyed(await self._survey())
        except FlowError as bad:  # what was last known stands; `run` says that the database does not answer
            self._log.debug("survey_failed", why=bad.message)
        await asyncio.sleep(_SURVEY_EVERY)

    async def _survey(self) -> SlowSample:
        """Look at the ends of what is kept: waits, timers, held replies, dead letters."""
        now, reads = self._clock(), self._store.queries  # what takes long must not keep a timer waiting
        found = await reads.gauges(now)
        census = self._tracker.census
        if not census.known:
            await census.take(reads)
        held = (await reads.held_replies(limit=1, payloads=False)).items
        letters: dict[str, int] = {}
        for group in await reads.letter_groups(_GROUPS):
            letters[group.reason] = letters.get(group.reason, 0) + group.count - group.replayed
        return SlowSample(
            overdue=found.due,
            waits={kind or "other": (count, _seconds_since(first, now)) for kind, (count, first) in census.waiting().items()},
            held_age=_seconds_since(held[0].arrived_us if held else None, now),
            letters=letters,
            most={quota: used for quota, (_, used) in found.most.items()},
        )

    async def _look(self, lag: float) -> Sample:
        """Look at everything that a gauge shows."""
        now = self._clock()
        due, unpublished = await self._store.next_due(), await self._store.oldest_unpublished()
        return Sample(
            counts=await self._store.counts(),
            loop_lag=lag,
            overdue=_seconds_since(due, now),
            connected=self._bus.connected,
            writable=not self._engine.stalled,
            outbox=sum(relay.in_flight for relay in self._relays),
            set_aside=sum(relay.set_aside for relay in self._relays),
            outbox_age=_seconds_since(unpublished, now),
            published=sum(relay.stored for relay in self._relays if relay.outlet == "events"),
            reconnects=self._bus.reconnects,
            dropped=self._bus.dropped,
            busy=self._engine.batches_postponed,
            room=await self._store.room(),
        )

    def live(self) -> Sequence[Check]:
        """Look whether the process works: its loop comes round and its database thread answers. Never about NATS."""
        silent = asyncio.get_running_loop().time() - self._answered
        return [Check("database", silent < _STALE + _EVERY, f"no answer for {silent:.0f} s")]

    def ready(self) -> Sequence[Check]:
        """Look whether it does its work: everything of `live`, connected, able to store, and not on its way out."""
        return [
            *self.live(),
            *self.started(),
            Check("nats", self._bus.connected, "not connected; reconnecting", remark=capacity.remark(self._bus.max_payload)),
            Check("deliveries", not self._bus.trouble, self._bus.trouble),
            Check("clock", not self._clock_apart, self._clock_apart),
            Check("streams", not self._inspector.flaws, "; ".join(self._inspector.flaws)),
            *(Check(relay.outlet, not relay.trouble, f"not published: {relay.trouble}") for relay in self._relays),
            Check("store", not self._engine.stalled, "the database takes no changes (is the disk full?)"),
            Check("running", not self.is_stopping, "stopping"),
        ]

    @property
    def _clock_apart(self) -> str:
        """Say how far the clock is from the broker's, where that is more than deadlines bear; empty otherwise."""
        offset = self._bus.offset
        if abs(offset) <= _CLOCK:
            return ""
        side = "behind" if offset > 0 else "ahead of"
        return f"this machine's clock is {abs(offset) / SECOND:.1f} s {side} the broker's: run NTP on both"

    def _watch_clock(self) -> None:
        """Say in the log once that the clocks are apart, and again once they were not."""
        apart = self._clock_apart
        if apart and not self._apart:
            self._log.warning(LogEvent.CLOCK_APART, why=apart)
        self._apart = bool(apart)

    def started(self) -> Sequence[Check]:
        """Look whether recovery is over."""
        return [Check("started", self.is_started, "still starting")]


def _seconds_since(moment: Micros | None, now: Micros) -> float:
    """Return how long ago a moment was; 0 where it is still to come, or there is none."""
    return 0.0 if moment is None else max(now - moment, 0) / SECOND
