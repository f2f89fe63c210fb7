"""One run of the whole worker in this process, from its start to its stop or kill.

Store and bus are the caller's.
"""

from __future__ import annotations

import asyncio
import contextvars

from nats_taskflow import wiring
from nats_taskflow.bus.port import Bus
from nats_taskflow.config import Config
from nats_taskflow.engine.engine import Clock
from nats_taskflow.errors import root_of
from nats_taskflow.observe.metrics import Metrics
from nats_taskflow.observe.recorder import MetricsRecorder
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.store.port import Store

_PATIENCE = 10.0


class WorkerRun:
    """A worker, wired as `app` wires it.

    `store` is open already; who opened it closes it. `clock` is its time.
    """

    def __init__(self, config: Config, store: Store, bus: Bus, *, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._bus = bus
        self._clock = clock
        self._stop = StopSignal()
        self._task: asyncio.Task[None] | None = None
        self.services: wiring.Services

    async def begin(self, *, context: contextvars.Context | None = None, adopt: bool = False) -> None:
        """Start the worker, and return when it is ready.

        Raises what keeps it from that. `adopt`: as with `taskflow run --adopt`.
        """
        self.services = await wiring.set_up(self._config, self._store, self._bus, MetricsRecorder(Metrics()), self._clock, adopt=adopt)
        is_ready = asyncio.Event()
        living = wiring.supervise(self._config, self.services, self._stop, is_ready.set)
        self._task = asyncio.get_running_loop().create_task(living, context=context)
        ready = asyncio.ensure_future(is_ready.wait())
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._task.done():
            await self._task

    @property
    def over(self) -> bool:
        """Whether the worker has ended, by itself or not."""
        return self._task is None or self._task.done()

    @property
    def died_of(self) -> BaseException | None:
        """What ended the worker before it was asked to stop.

        None while it runs, and where nothing did.
        """
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        failure = self._task.exception()
        return root_of(failure) if isinstance(failure, BaseExceptionGroup) else failure

    def ask_to_stop(self) -> None:
        """Ask the worker to stop, as SIGTERM does."""
        self._stop.request()

    async def ended(self) -> None:
        """Return when the worker has ended by itself. Raises what ended it."""
        if self._task is not None:
            await asyncio.wait_for(self._task, _PATIENCE)

    async def cut(self) -> None:
        """Cancel the worker, as abruptly as SIGKILL.

        Cut off store and bus before: what it does while it is cancelled must not reach them.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.exception()  # retrieve it, or asyncio logs it
