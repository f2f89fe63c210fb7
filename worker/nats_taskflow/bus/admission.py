"""Admit requests to be worked on, by turns of who asks and within bounds: what a bus adapter does with whatever comes to its service.

nats-py runs an endpoint's handlers one after another, and one agent's backlog would be everybody's. Here each request has a task, as soon
as there is room for it: in number and bytes, of all and of one agent. Its place is free when its answer has left. What waits is bounded,
too: over that, the agent that has most waiting is refused its newest, at the price of a look. The refusals leave one after another, so
that no flood of them stands before somebody's answer; where more come than leave, the others are refused without a word.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from nats_taskflow.bus.endpoints import ServiceRequest
from nats_taskflow.errors import Unavailable
from nats_taskflow.tasks import Errands
from nats_taskflow.turns import AdmissionBounds, FairAdmission
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, Headers, weight
from nats_taskflow.wire.outcomes import error_headers, refused

INTERNAL = b'{"ok":false,"error":{"code":"internal","message":"the request failed; nothing is known about its effect"}}'
_BUSY = Unavailable("too many requests wait, and most are yours: repeat this one under the same command id when others are answered")
_STOPPING = Unavailable("the worker is stopping: repeat with the same command id")
BUSY = refused(_BUSY), error_headers(_BUSY)
STOPPING = refused(_STOPPING), error_headers(_STOPPING)
AROUND = 1024
"""About what a request costs besides its body."""
IN_HAND = AdmissionBounds(512, 16 * 1024 * 1024)
OF_ONE = AdmissionBounds(256, 4 * 1024 * 1024)
WAITING = 16 * 1024 * 1024
UNTOLD = 1000
"""How many refusals may wait to leave."""

Handler = Callable[[ServiceRequest], Awaitable[None]]
Answer = Callable[[bytes, Headers], Coroutine[Any, Any, None]]


class Admission:
    """Admits requests to `handler`. `refused`: how many were not, because too much waited."""

    def __init__(self, handler: Handler, whose: Callable[[str], str]) -> None:
        self._handler = handler
        self._whose = whose
        self._turnstile: FairAdmission[tuple[ServiceRequest, int]] = FairAdmission(IN_HAND, OF_ONE, self._begin)
        self._errands = Errands()
        self._context = contextvars.copy_context()  # the worker's, whoever asks
        self._refusals: deque[Answer] = deque()
        self._telling: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self.refused = 0

    def put(self, request: ServiceRequest) -> None:
        """Admit a request when it is its turn."""
        weight = _weight(request)
        self._turnstile.enter(self._whose(request.subject), (request, weight), weight)
        while self._turnstile.waiting > WAITING:
            self.refused += 1
            self._refuse(self._turnstile.take_back()[0])

    async def finish(self) -> None:
        """Refuse what waits, and wait for the requests in hand."""
        left = []
        while self._turnstile.waiting:
            left.append(self._turnstile.take_back()[0])
        for request in left:
            await request.answer(*STOPPING)
        await self._errands.finish()

    def _begin(self, admitted: tuple[ServiceRequest, int]) -> None:
        """Hand a request that was admitted, with its weight, to its own task."""
        self._errands.start(self._handle(*admitted), "request", context=self._context.copy())

    def _refuse(self, request: ServiceRequest) -> None:
        """Have a request answered that is not carried out."""
        if len(self._refusals) < UNTOLD:
            self._refusals.append(request.answer)
        if self._telling is None or self._telling.done():
            self._telling = self._errands.start(self._tell_refused(), "refusals", context=self._context.copy())

    async def _tell_refused(self) -> None:
        """Answer what was refused, each when the one before has left."""
        while self._refusals:
            await self._refusals.popleft()(*BUSY)

    async def _handle(self, request: ServiceRequest, weight: int) -> None:
        """Run the handler, then make room; what it raises is a defect and stays inside."""
        try:
            await self._handler(request)
        except Exception:  # noqa: BLE001  a defect of the handler is logged, and is not the requester's to read
            self._log.exception("service.handler_failed", subject=request.subject)
            await request.answer(INTERNAL, {SERVICE_ERROR: "the request failed", SERVICE_ERROR_CODE: "500"})
        finally:
            self._turnstile.leave(self._whose(request.subject), weight)


def _weight(request: ServiceRequest) -> int:
    """Return about how much memory a request keeps."""
    return AROUND + len(request.body) + weight(request.headers)
