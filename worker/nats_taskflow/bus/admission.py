"""Admit service requests in turns of their callers, within bounds.

Both adapters hand their requests to it. nats-py runs an endpoint's handlers one after another, so one agent's backlog would be everybody's.
Here each request gets its own task once there is room: in number and in bytes, for all callers and for one. The room is free again when the
answer has left. If too many bytes wait, the agent with the most of them is refused its newest request. Refusals leave one after another,
so that no flood of them stands before an answer; where more come than leave, the others are refused without a word.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from nats_taskflow.bus.endpoints import RequestHandler, ServiceRequest
from nats_taskflow.errors import Unavailable
from nats_taskflow.tasks import Errands
from nats_taskflow.turns import AdmissionBounds, FairAdmission
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, Headers, weight
from nats_taskflow.wire.outcomes import encode_refused, error_headers

INTERNAL = b'{"ok":false,"error":{"code":"internal","message":"the request failed; nothing is known about its effect"}}'
TOO_LARGE = b'{"ok":false,"error":{"code":"too_large","message":"the answer is larger than the broker takes; ask for less"}}'
TOO_LARGE_HEADERS = {SERVICE_ERROR: "the answer is too large", SERVICE_ERROR_CODE: "413"}
_BUSY = Unavailable("too many requests wait, and most are yours: repeat this one under the same command id when others are answered")
_STOPPING = Unavailable("the worker is stopping: repeat with the same command id")
BUSY = encode_refused(_BUSY), error_headers(_BUSY)
STOPPING = encode_refused(_STOPPING), error_headers(_STOPPING)
REQUEST_OVERHEAD = 1024
"""Bytes of memory that a request takes besides its body, roughly."""
TOTAL_BOUNDS = AdmissionBounds(512, 16 * 1024 * 1024)
CALLER_BOUNDS = AdmissionBounds(256, 4 * 1024 * 1024)
WAITING_BYTES_MAX = 16 * 1024 * 1024
REFUSALS_WAITING_MAX = 1000
"""How many refusals may wait to leave."""

Answer = Callable[[bytes, Headers], Coroutine[Any, Any, None]]


class Admission:
    """Runs `handler` for each request it admits.

    `refused` counts those turned away because too much waited.
    """

    def __init__(self, handler: RequestHandler, caller_of: Callable[[str], str]) -> None:
        self._handler = handler
        self._caller_of = caller_of
        self._turnstile: FairAdmission[tuple[ServiceRequest, int]] = FairAdmission(TOTAL_BOUNDS, CALLER_BOUNDS, self._begin)
        self._errands = Errands()
        self._context = contextvars.copy_context()  # the worker's own, never the caller's
        self._refusals: deque[Answer] = deque()
        self._refusing: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self.refused = 0

    def put(self, request: ServiceRequest) -> None:
        """Queue a request until it is its caller's turn."""
        weight = _weight(request)
        self._turnstile.enter(self._caller_of(request.subject), (request, weight), weight)
        while self._turnstile.waiting > WAITING_BYTES_MAX:
            self.refused += 1
            self._refuse(self._turnstile.take_back()[0])

    async def finish(self) -> None:
        """Refuse the requests that wait, then wait for those in hand."""
        left = []
        while self._turnstile.waiting:
            left.append(self._turnstile.take_back()[0])
        for request in left:
            await request.answer(*STOPPING)
        await self._errands.finish()

    def _begin(self, admitted: tuple[ServiceRequest, int]) -> None:
        self._start(self._handle(*admitted), "request")

    def _refuse(self, request: ServiceRequest) -> None:
        if len(self._refusals) < REFUSALS_WAITING_MAX:
            self._refusals.append(request.answer)
        if self._refusing is None or self._refusing.done():
            self._refusing = self._start(self._send_refusals(), "refusals")

    async def _send_refusals(self) -> None:
        # One at a time, each when the answer before it has left.
        while self._refusals:
            await self._refusals.popleft()(*BUSY)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._errands.start(work, name, context=self._context.copy())

    async def _handle(self, request: ServiceRequest, weight: int) -> None:
        """Run the handler, then make room.

        An exception is a defect: it is logged and answered without details.
        """
        try:
            await self._handler(request)
        except Exception:  # noqa: BLE001  its text may hold what the caller must not read
            self._log.exception("service.handler_failed", subject=request.subject)
            await request.answer(INTERNAL, {SERVICE_ERROR: "the request failed", SERVICE_ERROR_CODE: "500"})
        finally:
            self._turnstile.leave(self._caller_of(request.subject), weight)


def _weight(request: ServiceRequest) -> int:
    # What the request keeps in memory, in bytes: an estimate.
    return REQUEST_OVERHEAD + len(request.body) + weight(request.headers)
