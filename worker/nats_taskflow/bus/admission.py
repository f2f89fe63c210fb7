"""Admit service requests: callers take turns, and what is in hand or waits is bounded. Both adapters hand their requests to it.

nats-py runs an endpoint's handlers one after another, so one agent's backlog would be everybody's. Here each request gets its own task once
there is room: in number and in bytes, for all callers and for one. The room is free again when the answer has left. If too many bytes wait,
the agent with the most of them is refused its newest request.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from nats_taskflow.bus.endpoints import RequestHandler, ServiceRequest
from nats_taskflow.errors import FlowError, Unavailable
from nats_taskflow.tasks import Errands
from nats_taskflow.turns import AdmissionBounds, FairAdmission
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, weight
from nats_taskflow.wire.outcomes import encode_refused, error_headers

INTERNAL = b'{"ok":false,"error":{"code":"internal","message":"the request failed; nothing is known about its effect"}}'
TOO_LARGE = b'{"ok":false,"error":{"code":"too_large","message":"the answer is larger than the broker takes; ask for less"}}'
TOO_LARGE_HEADERS = {SERVICE_ERROR: "the answer is too large", SERVICE_ERROR_CODE: "413"}
BUSY = Unavailable("too many requests wait, and most are yours: repeat this one under the same command id when others are answered")
STOPPING = Unavailable("the worker is stopping: repeat with the same command id")
REQUEST_OVERHEAD = 1024
"""Bytes of memory that a request takes besides its body, roughly."""
TOTAL_BOUNDS = AdmissionBounds(512, 16 * 1024 * 1024)
CALLER_BOUNDS = AdmissionBounds(256, 4 * 1024 * 1024)
WAITING_BYTES_MAX = 16 * 1024 * 1024


class Admission:
    """Runs `handler` for each request it admits. `refused` counts those turned away because too much waited."""

    def __init__(self, handler: RequestHandler, caller_of: Callable[[str], str]) -> None:
        self._handler = handler
        self._caller_of = caller_of
        self._turnstile: FairAdmission[tuple[ServiceRequest, int]] = FairAdmission(TOTAL_BOUNDS, CALLER_BOUNDS, self._begin)
        self._errands = Errands()
        self._context = contextvars.copy_context()  # the worker's own, never the caller's
        self._log = structlog.get_logger()
        self.refused = 0

    def put(self, request: ServiceRequest) -> None:
        """Queue a request until it is its caller's turn."""
        weight = _weight(request)
        self._turnstile.enter(self._caller_of(request.subject), (request, weight), weight)
        while self._turnstile.waiting > WAITING_BYTES_MAX:
            self.refused += 1
            self._refuse(self._turnstile.take_back()[0], BUSY)

    async def finish(self) -> None:
        """Refuse the requests that wait, then wait for those in hand."""
        while self._turnstile.waiting:
            self._refuse(self._turnstile.take_back()[0], STOPPING)
        await self._errands.finish()

    def _begin(self, admitted: tuple[ServiceRequest, int]) -> None:
        self._spawn(self._handle(*admitted))

    def _refuse(self, request: ServiceRequest, error: FlowError) -> None:
        self._spawn(request.answer(encode_refused(error), error_headers(error)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._errands.start(work, "request", context=self._context.copy())

    async def _handle(self, request: ServiceRequest, weight: int) -> None:
        """Run the handler, then make room. An exception is a defect: it is logged and answered without details."""
        try:
            await self._handler(request)
        except Exception:  # noqa: BLE001  its text may hold what the caller must not read
            self._log.exception("service.handler_failed", subject=request.subject)
            await request.answer(INTERNAL, {SERVICE_ERROR: "the request failed", SERVICE_ERROR_CODE: "500"})
        finally:
            self._turnstile.leave(self._caller_of(request.subject), weight)


def _weight(request: ServiceRequest) -> int:
    """Estimate the memory that a request keeps, in bytes."""
    return REQUEST_OVERHEAD + len(request.body) + weight(request.headers)
