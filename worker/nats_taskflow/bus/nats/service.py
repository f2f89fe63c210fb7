"""Answer core requests as a NATS micro service, each request in its own task.

nats-py runs an endpoint's handlers one after another, answers an exception with its text, and `Msg.respond` echoes the request's
headers; so requests are taken past it (`Admission` says when each is handled), failures are answered without details, and answers are
published here. What `$SRV.STATS` says is counted here, too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from time import perf_counter_ns
from typing import Any

import msgspec
import structlog
from nats import micro
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.request import Request as MicroRequest
from nats.micro.service import Endpoint as MicroEndpoint
from nats.micro.service import EndpointConfig, EndpointStats
from nats.micro.service import Service as MicroService

from nats_taskflow.bus.admission import TOO_LARGE, TOO_LARGE_HEADERS, Admission
from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.nats.connection import NatsConnection
from nats_taskflow.bus.nats.frames import read_headers
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.port import NO_HEADERS, Headers
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE
from nats_taskflow.wire.subjects import covers

_STOP_TIMEOUT = 2.0
_QUEUE = "q"

Handler = Callable[[ServiceRequest], Awaitable[None]]
Accept = Callable[[str, str, bytes, Headers | None], None]


class EndpointCounts(msgspec.Struct):
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
        if SERVICE_ERROR_CODE in headers:
            self.errors += 1
            self.last_error = f"{headers[SERVICE_ERROR_CODE]}: {headers.get(SERVICE_ERROR, '')}"


class ListedEndpoint(MicroEndpoint):
    """An endpoint that `$SRV.INFO` and `$SRV.STATS` tell of, and that hears nothing: one subscription hears for all that it covers.

    Where each had its own, the server sent the catch-all a copy of every request.
    """

    def __init__(self, service: MicroService, endpoint: Endpoint) -> None:
        metadata = dict(endpoint.metadata)
        config = EndpointConfig(name=endpoint.name, handler=_unheard, queue_group=_QUEUE, subject=endpoint.subject, metadata=metadata)
        super().__init__(service, config)

    async def _stop(self) -> None:
        """Stop what was never started."""


async def _unheard(_request: MicroRequest) -> None:
    """Take what comes to an endpoint's own subscription: there is none."""


class ServiceServer:
    """Serve one `Service` on a connection; see `Admission` for what is in hand at a time."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._admission: Admission | None = None
        self._micro: MicroService | None = None
        self._subscriptions: list[Subscription] = []
        self._answers: defaultdict[str, EndpointCounts] = defaultdict(EndpointCounts)
        self._log = structlog.get_logger()

    async def start(self, service: Service, handler: Handler) -> None:
        """Register the service's endpoints."""
        self._admission = Admission(handler, service.caller_of)
        accept = self._accepting(service, self._admission)

        def take(subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
            """Take a request in the read loop: nats-py's queue would have everybody's in one line."""
            of = read_headers(headers) if headers else None
            accept(subject.decode("utf-8", "replace"), reply.decode("utf-8", "replace"), body, of)

        async def on_message(msg: Msg) -> None:
            """Take what came before the subscription was read directly."""
            accept(msg.subject, msg.reply, msg.data, msg.headers)

        client = self._connection.client
        self._micro = await micro.add_service(
            client, name=service.name, version=service.version, description=service.description, stats_handler=self._tell
        )
        listed = [ListedEndpoint(self._micro, endpoint) for endpoint in service.endpoints + service.catch_all]
        self._micro._endpoints.extend(listed)  # noqa: SLF001  its `add_endpoint` subscribes
        for pattern in service.patterns:
            subscription = await client.subscribe(pattern, queue=_QUEUE, cb=on_message)
            client.read_directly(subscription, take)
            self._subscriptions.append(subscription)
        await self._connection.flush()  # the server knows the subscriptions when this returns, so nobody is told that nobody answers

    def _accepting(self, service: Service, admission: Admission) -> Accept:
        """Make what takes a request."""

        @lru_cache(maxsize=1024)
        def pattern_of(subject: str) -> str:
            """Return the pattern of the endpoint that covers the subject."""
            listed = service.endpoints + service.catch_all
            return next(endpoint.subject for endpoint in listed if covers(endpoint.subject, subject))

        def accept(subject: str, reply: str, body: bytes, headers: Headers | None) -> None:
            """Take a request, unless its answer would go where it must not."""
            pattern = pattern_of(subject)
            self._answers[pattern].requests += 1
            if service.guards(reply):
                self._log.warning("service.answer_withheld", subject=subject, reply=reply)
                return
            answer = self._answering(pattern, reply)
            admission.put(ServiceRequest(subject=subject, headers=headers or NO_HEADERS, body=body, answer=answer))

        return accept

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
        self._connection.outbound.hurry()
        if self._admission is not None:
            await self._admission.finish()

    @property
    def refused(self) -> int:
        """How many requests were not admitted."""
        return self._admission.refused if self._admission is not None else 0

    async def _take_the_last(self) -> None:
        """Tell the server to send no more, and take what it has sent: nats-py forgets a subscription before that has come."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await self._connection.client._send_unsubscribe(subscription._id)  # noqa: SLF001  the public way forgets it at once
        await self._connection.flush()
        for subscription in subscriptions:
            await subscription.unsubscribe()

    def _answering(self, pattern: str, reply: str) -> Callable[[bytes, Headers], Coroutine[Any, Any, None]]:
        """Make what answers a request that has just come to the endpoint on `pattern`."""
        began = perf_counter_ns()

        async def answer(body: bytes, headers: Headers) -> None:
            """Answer this request."""
            said = self._answer(reply, body, headers)
            self._answers[pattern].add(said, perf_counter_ns() - began)
            await self._connection.outbound.left()

        return answer

    def _tell(self, stats: EndpointStats) -> None:
        """Fill in for `$SRV.STATS` what nats-py does not see."""
        answers = self._answers[stats.subject]
        stats.num_requests = answers.requests
        stats.num_errors, stats.last_error = answers.errors, answers.last_error
        stats.processing_time, stats.average_processing_time = answers.time, answers.time // max(answers.count, 1)

    def _answer(self, reply: str, body: bytes, headers: Headers) -> Headers:
        """Publish the answer with these headers only, an over-large one as an error; returns the headers that were sent."""
        if not reply:
            return headers  # a publish, not a request: nobody waits
        refusal = objection(reply, body, headers, self._connection.max_payload)
        if refusal is not None:
            self._log.warning("service.answer_refused", reason=refusal)
            body, headers = TOO_LARGE, TOO_LARGE_HEADERS
            if objection(reply, body, headers, self._connection.max_payload) is not None:
                return headers  # the reply subject itself is unusable
        self._connection.outbound.put(Frame(reply, body, headers=headers))
        return headers
