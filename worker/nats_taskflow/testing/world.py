"""The world of a test: the worker in memory, a virtual clock, faults, asserts."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from nats_taskflow.client.clock import use_clock
from nats_taskflow.client.flows import FlowClient
from nats_taskflow.client.transport import PublishReceipt, Transport
from nats_taskflow.config import Config
from nats_taskflow.testing.assertions import Assertions
from nats_taskflow.testing.chaos import Chaos, FaultyBroker, FaultyBus
from nats_taskflow.testing.clock import Clock, soon
from nats_taskflow.testing.memory import MemoryWorker
from nats_taskflow.testing.transport import MemoryTransport


@contextmanager
def _quiet() -> Iterator[None]:
    """Have the worker log only warnings and worse, on stderr.

    structlog would print everything on stdout. Where the program has configured logging itself, nothing changes.
    """
    if structlog.is_configured():
        yield
        return
    warnings = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=warnings, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        yield
    finally:
        structlog.reset_defaults()


class TaskflowWorld(Assertions):
    """The whole worker in memory, gone at the end with everything in it.

    Use it as `async with TaskflowWorld() as world:`. `reply_topics`: subjects that carry replies, as `subjects.reply_topics`. `config`: all
    other settings. `at`: when the world begins (now). `seed`: of the chaos. After every test that injected faults, the worker's promises
    are checked.
    """

    def __init__(
        self, config: Config | None = None, *, reply_topics: Sequence[str] | None = None, at: datetime | None = None, seed: int = 0
    ) -> None:
        config = config or Config()
        if reply_topics is not None:
            subjects = msgspec.structs.replace(config.subjects, reply_topics=tuple(reply_topics))
            config = msgspec.structs.replace(config, subjects=subjects)
        super().__init__(prefix=config.subjects.prefix)
        self.clock = Clock(at or soon(), self)
        self.broker = FaultyBroker(clock=self.clock)
        self.chaos = self.broker.chaos = Chaos(seed, kill=self._kill, restart=self._restart)
        self._worker = MemoryWorker(config, self.clock, self.broker)
        self._own = MemoryTransport(self.broker)
        self._prefix = config.subjects.prefix
        self._beside: set[asyncio.Task[Any]] = set()
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._closing.enter_context(_quiet())
        self.clock.loop.install()
        self._closing.callback(self.clock.loop.uninstall)
        self._closing.enter_context(use_clock(self.clock.now))
        self._closing.push_async_callback(self._end)
        try:
            await self._worker.create()
            self.begin()
            self._closing.callback(self.end)
            await self._worker.start(FaultyBus(self.broker))
            await self.settled()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.check_all_awaited()
                await self.settled()
                if self.chaos.done:
                    await self.assert_promises()
        finally:
            await self._closing.aclose()

    @property
    def alive(self) -> bool:
        """Whether the worker runs: False after a kill."""
        return self._worker.alive

    @property
    def _transport(self) -> Transport:
        return self._own

    def transport(self) -> MemoryTransport:
        """Return a new connection to the broker, for a client, agent or delegate.

        It is closed at the end.
        """
        made = MemoryTransport(self.broker, disturbed=lambda: self.chaos.does("drop"))
        self._closing.push_async_callback(made.close)
        return made

    async def client(self, agent: str, **options: Any) -> FlowClient:
        """Return a new client of this agent, on its own connection.

        `options` are those of `FlowClient`. It is closed at the end.
        """
        flows = FlowClient(self.transport(), agent=agent, prefix=self._prefix, **options)
        await flows.open()
        self._closing.push_async_callback(flows.close)
        return flows

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the test until the end, such as an agent's loop.

        If it fails, so does the test.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        return task

    async def publish(self, subject: str, payload: object, *, msg_id: str) -> PublishReceipt:
        """Publish JSON into the stream that takes the subject.

        It does not use the client: any program may publish so.
        """
        return await self._own.publish(subject, msgspec.json.encode(payload), msg_id=msg_id, timeout=5.0)

    async def settled(self) -> None:
        """Return when nothing more happens without time passing.

        Then every message has its outcome, and every event is published. What failed is tried again when time passes: `clock.advance`.
        Raises what ended the worker, unless it was killed.
        """
        await self._worker.settled()
        for task in [one for one in self._beside if one.done()]:
            self._beside.discard(task)
            if not task.cancelled():
                task.result()

    async def assert_promises(self) -> None:
        """Assert all invariants of the database and of what was published.

        They are those that `taskflow db check` checks.
        """
        await self.settled()
        broken = await self._worker.broken_promises()
        assert not broken, f"the worker broke its promises ({self.chaos!r}):\n" + "\n".join(broken)

    def next_due(self) -> int | None:
        """Return when the next thing is due; None for never.

        In microseconds since the epoch.
        """
        return self._worker.next_due()

    async def arrived(self) -> None:
        """Start what is due now; the clock calls it."""
        await self._worker.arrived()

    async def _kill(self, after: int | None) -> None:
        """Kill the worker, at once or after so many statements."""
        if after is None:
            await self._worker.kill()
        else:
            self._worker.kill_after(after)

    async def _restart(self) -> None:
        await self._worker.kill()
        await self._worker.start(FaultyBus(self.broker))
        await self.settled()

    async def _end(self) -> None:
        """End what runs beside the test, and the worker."""
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)
        await self._own.close()
        await self._worker.kill()
        await self.clock.loop.rest()
        self._worker.close()
