"""Answer core requests as a NATS micro service, each request in its own task.

nats-py runs an endpoint's handlers one after another, answers an exception with its text, and `Msg.respond` echoes the request's
headers; so requests are handed on at once, failures are answered without details, and answers are published here. What `$SRV.STATS` says
of errors and times is counted here, too: nats-py sees a request only until it is handed on.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter_ns

import msgspec
import structlog
from nats import micro
from nats.micro.request import Request as MicroRequest
from nats.micro.service import EndpointStats
from nats.micro.service import Service as MicroService

from worker.bus.base import NO_HEADERS, Headers
from worker.bus.connection import Connection
from worker.bus.endpoints import Request, Service
from worker.bus.outbound import Frame, objection
from worker.wire.subjects import covers

ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"
TOO_LARGE = b'{"ok":false,"error":{"code":"too_large","message":"the answer is larger than the broker takes; ask for less"}}'
INTERNAL = b'{"ok":false,"error":{"code":"internal","message":"the request failed; nothing is known about its effect"}}'
_STOP_TIMEOUT = 2.0
_QUEUE = "q"
# Not the endpoints' queue: the server picks one subscription per queue name, whatever their patterns, and half the requests for an
# endpoint would come to the catch-all only.
_REST_QUEUE = "q-rest"

Handler = Callable[[Request], Awaitable[None]]


class Answers(msgspec.Struct):
    """What came to an endpoint, and was answered. `time`: nanoseconds from arrivals until answers were written, waiting included."""

    requests: int = 0
    count: int = 0
    time: int = 0
    errors: int = 0
    last_error: str = ""

    def add(self, headers: Headers, time: int) -> None:
        """Count an answer; one with an error's headers is an error."""
        self.count += 1
        self.time += time
        if ERROR_CODE in headers:
            self.errors += 1
            self.last_error = f"{headers[ERROR_CODE]}: {headers.get(ERROR, '')}"


class Server:
    """Serve one `Service` on a connection; `concurrency` bounds the requests in hand."""

    def __init__(self, connection: Connection, *, concurrency: int = 512) -> None:
        self._connection = connection
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._micro: MicroService | None = None
        self._answers: defaultdict[str, Answers] = defaultdict(Answers)
        self._log = structlog.get_logger()

    async def start(self, service: Service, handler: Handler) -> None:
        """Register the service's endpoints."""

        async def on_request(pattern: str, request: MicroRequest) -> None:
            """Take a request, unless its answer would go where it must not."""
            self._answers[pattern].requests += 1
            reply = _reply_of(request)
            if service.guards(reply):
                self._log.warning("service.answer_withheld", subject=request.subject, reply=reply)
                return
            answer = self._answering(pattern, reply)
            made = Request(subject=request.subject, headers=request.headers or NO_HEADERS, body=request.data, answer=answer)
            await self._accept(made, handler)

        async def on_rest(pattern: str, request: MicroRequest) -> None:
            """Take what no endpoint covers."""
            # Core NATS gives the catch-all a copy of everything: what an endpoint covers is answered there.
            if not any(covers(endpoint.subject, request.subject) for endpoint in service.endpoints):
                await on_request(pattern, request)

        self._micro = await micro.add_service(
            self._connection.client,
            name=service.name,
            version=service.version,
            description=service.description,
            stats_handler=self._tell,
        )
        for endpoints, on, queue in ((service.endpoints, on_request, _QUEUE), (service.catch_all, on_rest, _REST_QUEUE)):
            for endpoint in endpoints:
                await self._micro.add_endpoint(
                    name=endpoint.name,
                    subject=endpoint.subject,
                    handler=partial(on, endpoint.subject),
                    queue_group=queue,
                    metadata=dict(endpoint.metadata),
                )
        await self._connection.flush()  # the server knows the subscriptions when this returns, so nobody is told that nobody answers

    async def stop(self) -> None:
        """Deregister, then wait for the requests in hand. Never raises."""
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await self._take_the_last()
                if self._micro is not None:
                    await self._micro.stop()
        except Exception as error:  # noqa: BLE001  without a connection nothing can be deregistered, and nothing needs to be
            self._log.debug("service.stop_failed", reason=repr(error))
        self._micro = None
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _take_the_last(self) -> None:
        """Tell the server to send no more, and accept what it has sent: nats-py's own stop drops what is still queued, unanswered."""
        endpoints = self._micro._endpoints if self._micro is not None else []  # noqa: SLF001  micro gives no other access to them
        subscriptions = [found for found in (endpoint._subscription for endpoint in endpoints) if found is not None]  # noqa: SLF001
        for subscription in subscriptions:
            await self._connection.client._send_unsubscribe(subscription._id)  # noqa: SLF001  the public ways forget the queue
        await self._connection.flush()
        for subscription in subscriptions:
            await subscription._pending_queue.join()  # noqa: SLF001  as nats-py's `drain` does

    async def _accept(self, request: Request, handler: Handler) -> None:
        """Hand a request to its own task; waits while too many are in hand, which holds the subscription's queue back."""
        await self._slots.acquire()
        task = asyncio.create_task(self._handle(request, handler))
        self._tasks.add(task)  # the loop keeps weak references only
        task.add_done_callback(self._tasks.discard)

    def _answering(self, pattern: str, reply: str) -> Callable[[bytes, Headers], Awaitable[None]]:
        """Make what answers a request that has just come to the endpoint on `pattern`."""
        began = perf_counter_ns()

        async def answer(body: bytes, headers: Headers) -> None:
            """Answer this request."""
            said = self._answer(reply, body, headers)
            self._answers[pattern].add(said, perf_counter_ns() - began)

        return answer

    def _tell(self, stats: EndpointStats) -> None:
        """Fill in for `$SRV.STATS` what nats-py does not see."""
        answers = self._answers[stats.subject]
        stats.num_requests = answers.requests  # nats-py counts what comes to the catch-all as a copy, too
        stats.num_errors, stats.last_error = answers.errors, answers.last_error
        stats.processing_time, stats.average_processing_time = answers.time, answers.time // max(answers.count, 1)

    async def _handle(self, request: Request, handler: Handler) -> None:
        """Run the handler; what it raises is a defect and stays inside."""
        try:
            await handler(request)
        except Exception:  # noqa: BLE001  a defect of the handler is logged, and is not the requester's to read
            self._log.exception("service.handler_failed", subject=request.subject)
            await request.answer(INTERNAL, {ERROR: "the request failed", ERROR_CODE: "500"})
        finally:
            self._slots.release()

    def _answer(self, reply: str, body: bytes, headers: Headers) -> Headers:
        """Publish the answer with these headers only, an over-large one as an error; returns the headers that were sent."""
        if not reply:
            return headers  # a publish, not a request: nobody waits
        refusal = objection(reply, body, headers, self._connection.max_payload)
        if refusal is not None:
            self._log.warning("service.answer_refused", reason=refusal)
            body, headers = TOO_LARGE, {ERROR: "the answer is too large", ERROR_CODE: "413"}
            if objection(reply, body, headers, self._connection.max_payload) is not None:
                return headers  # the reply subject itself is unusable
        self._connection.outbound.put(Frame(reply, body, headers=headers))
        return headers


def _reply_of(request: MicroRequest) -> str:
    """Return the subject the requester waits on: micro's own `respond` would not be in order with the rest of what is written."""
    reply: str = request._msg.reply  # noqa: SLF001  micro gives no other access to it
    return reply
