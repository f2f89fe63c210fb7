"""Register the micro service at the broker in the process, and hand each request to a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import structlog

from worker.bus.base import Bus, Headers
from worker.bus.broker import Heard, MemoryBroker, Subscriber
from worker.bus.endpoints import Request, Service
from worker.bus.outbound import objection
from worker.bus.service import ERROR, ERROR_CODE, INTERNAL, TOO_LARGE

Handler = Callable[[Request], Awaitable[None]]


class MemoryServer:
    """The service of one connection; at most `concurrency` requests are handled at a time."""

    def __init__(self, bus: Bus, broker: MemoryBroker, concurrency: int) -> None:
        self._bus = bus
        self._broker = broker
        self._served: Subscriber | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger()

    def start(self, service: Service, handler: Handler) -> None:
        """Register the service's endpoints and its catch-all."""
        patterns = tuple(endpoint.subject for endpoint in service.endpoints + service.catch_all)
        context = contextvars.copy_context()  # the worker's, whoever asks

        def take(heard: Heard) -> None:
            """Hand a request to its own task."""
            if self._bus.connected and not service.guards(heard.reply):
                task = asyncio.get_running_loop().create_task(self._handle(heard, handler), context=context.copy())
                self._tasks.add(task)  # the loop keeps weak references only
                task.add_done_callback(self._tasks.discard)

        self._served = Subscriber(patterns, take)
        self._broker.subscribers.append(self._served)

    async def stop(self) -> None:
        """Deregister, and wait for the requests in hand."""
        self.deregister()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def deregister(self) -> None:
        """Take the service off the broker."""
        served, self._served = self._served, None
        if served is not None:
            self._broker.subscribers.remove(served)

    async def _handle(self, heard: Heard, handler: Handler) -> None:
        """Run the handler on a request; what it raises stays inside."""

        async def answer(body: bytes, headers: Headers) -> None:
            """Answer this request."""
            if objection(heard.reply or "nobody", body, headers, self._bus.max_payload) is not None:
                body, headers = TOO_LARGE, {ERROR: "the answer is too large", ERROR_CODE: "413"}
            if heard.reply:
                await self._bus.tell(heard.reply, body, headers)

        async with self._slots:
            try:
                await handler(Request(subject=heard.subject, headers=heard.headers, body=heard.body, answer=answer))
            except Exception:  # noqa: BLE001  a defect of the handler is logged, and is not the requester's to read
                self._log.exception("service.handler_failed", subject=heard.subject)
                await answer(INTERNAL, {ERROR: "the request failed", ERROR_CODE: "500"})
