"""Look at how the worker is, once a second: the event loop's lag, the database thread, the broker; and answer health questions from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from worker.bus.base import Bus
from worker.errors import FlowError
from worker.health import Check
from worker.inspector import Inspector
from worker.relay import Relay
from worker.store.base import Reads
from worker.tracking import Tracker

_EVERY = 1.0
_STALE = 5.0
"""Seconds after which a database that has not answered, or a loop that has not come round, counts as hung."""


class WorkerProbes:
    """What `/livez`, `/readyz` and `/startupz` ask. `paused()` says whether the store refuses changes at the moment."""

    def __init__(
        self, store: Reads, bus: Bus, relays: Sequence[Relay], inspector: Inspector, tracker: Tracker, *, paused: Callable[[], bool]
    ) -> None:
        self._store = store
        self._bus = bus
        self._relays = relays
        self._inspector = inspector
        self._tracker = tracker
        self._paused = paused
        self._answered = asyncio.get_running_loop().time()
        self.is_started = False
        self.is_stopping = False
        self._log = structlog.get_logger("probes")

    async def run(self) -> None:
        """Look once a second until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(_EVERY)
            lag = max(loop.time() - began - _EVERY, 0.0)
            try:
                counts = await self._store.counts()
            except FlowError as bad:
                self._log.warning("store_unavailable", why=bad.message)
                continue
            self._answered = loop.time()
            outbox = sum(relay.in_flight for relay in self._relays)
            self._tracker.looked(counts, lag=lag, connected=self._bus.connected, outbox=outbox)

    def live(self) -> Sequence[Check]:
        """Look whether the process works: its loop comes round and its database thread answers. Never about NATS."""
        silent = asyncio.get_running_loop().time() - self._answered
        return [Check("database", silent < _STALE + _EVERY, f"no answer for {silent:.0f} s")]

    def ready(self) -> Sequence[Check]:
        """Look whether it does its work: everything of `live`, connected, able to store, and not on its way out."""
        return [
            *self.live(),
            *self.started(),
            Check("nats", self._bus.connected, "not connected; reconnecting"),
            Check("deliveries", not self._bus.trouble, self._bus.trouble),
            Check("streams", not self._inspector.flaws, "; ".join(self._inspector.flaws)),
            *(Check(relay.outlet, not relay.trouble, f"not published: {relay.trouble}") for relay in self._relays),
            Check("store", not self._paused(), "the database takes no changes (is the disk full?)"),
            Check("running", not self.is_stopping, "stopping"),
        ]

    def started(self) -> Sequence[Check]:
        """Look whether recovery is over."""
        return [Check("started", self.is_started, "still starting")]
