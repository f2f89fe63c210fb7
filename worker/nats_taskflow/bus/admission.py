"""Admit requests to be worked on, by turns of who asks and within bounds: what a bus adapter does with whatever comes to its service.

nats-py runs an endpoint's handlers one after another, and one agent's backlog would be everybody's. Here each request has a task, as soon
as there is room for it: in number and bytes, of all and of one agent. Its place is free when its answer has left. What waits is bounded,
too: over that, the agent that has most waiting is refused its newest, at the price of a look.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from nats_taskflow.bus.endpoints import ServiceRequest
from nats_taskflow.errors import FlowError, Unavailable
from nats_taskflow.tasks import Errands
from nats_taskflow.turns import AdmissionBounds, FairAdmission
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, weight
from nats_taskflow.wire.outcomes import error_headers, refused

INTERNAL = b'{"ok":false,"error":{"code":"internal","message":"the request failed; nothing is known about its effect"}}'
TOO_LARGE = b'{"ok":false,"error":{"code":"too_large","message":"the answer is larger than the broker takes; ask for less"}}'
TOO_LARGE_HEADERS = {SERVICE_ERROR: "the answer is too large", SERVICE_ERROR_CODE: "413"}
BUSY = Unavailable("too many requests wait, and most are yours: repeat this one under the same command id when others are answered")
STOPPING = Unavailable("the worker is stopping: repeat with the same command id")
REQUEST_OVERHEAD = 1024
"""About what a request costs besides its body."""
TOTAL_BOUNDS = AdmissionBounds(512, 16 * 1024 * 1024)
CALLER_BOUNDS = AdmissionBounds(256, 4 * 1024 * 1024)
WAITING_BYTES_MAX = 16 * 1024 * 1024

Handler = Callable[[ServiceRequest], Awaitable[None]]


class Admission:
    """Admits requests to `handler`. `refused`: how many were not, because too much waited."""

    def __init__(self, handler: Handler, caller_of: Callable[[str], str]) -> None:
        self._handler = handler
        self._caller_of = caller_of
        self._turnstile: FairAdmission[tuple[ServiceRequest, int]] = FairAdmission(TOTAL_BOUNDS, CALLER_BOUNDS, self._begin)
        self._errands = Errands()
        self._context = contextvars.copy_context()  # the worker's, whoever asks
        self._log = structlog.get_logger()
        self.refused = 0

    def put(self, request: ServiceRequest) -> None:
        """Admit a request when it is its turn."""
        weight = _weight(request)
        self._turnstile.enter(self._caller_of(request.subject), (request, weight), weight)
        while self._turnstile.waiting > WAITING_BYTES_MAX:
            self.refused += 1
            self._refuse(self._turnstile.take_back()[0], BUSY)

    async def finish(self) -> None:
        """Refuse what waits, and wait for the requests in hand."""
        while self._turnstile.waiting:
            self._refuse(self._turnstile.take_back()[0], STOPPING)
        await self._errands.finish()

    def _begin(self, admitted: tuple[ServiceRequest, int]) -> None:
        """Hand a request that was admitted, with its weight, to its own task."""
        self._spawn(self._handle(*admitted))

    def _refuse(self, request: ServiceRequest, why: FlowError) -> None:
        """Answer a request that is not carried out."""
        self._spawn(request.answer(refused(why), error_headers(why)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task until its end."""
        self._errands.start(work, "request", context=self._context.copy())

    async def _handle(self, request: ServiceRequest, weight: int) -> None:
        """Run the handler, then make room; what it raises is a defect and stays inside."""
        try:
            await self._handler(request)
        except Exception:  # noqa: BLE001  a defect of the handler is logged, and is not the requester's to read
            self._log.exception("service.handler_failed", subject=request.subject)
            await request.answer(INTERNAL, {SERVICE_ERROR: "the request failed", SERVICE_ERROR_CODE: "500"})
        finally:
            self._turnstile.leave(self._caller_of(request.subject), weight)


def _weight(request: ServiceRequest) -> int:
    """Return about how much memory a request keeps."""
    return REQUEST_OVERHEAD + len(request.body) + weight(request.headers)
