"""Answer core requests as a NATS micro service, each request in its own task.

nats-py runs an endpoint's handlers one after another, answers an exception with its text, and echoes the request's headers. So requests
bypass it (`Admission` decides when each is handled), failures are answered without details, and answers are published here. The figures of
`$SRV.STATS` are counted here, too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
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
from nats_taskflow.bus.endpoints import Endpoint, RequestHandler, Service, ServiceRequest
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.nats.connection import NatsConnection
from nats_taskflow.bus.nats.frames import read_headers
from nats_taskflow.bus.nats.outbound import Frame
from nats_taskflow.bus.port import NO_HEADERS
from nats_taskflow.wire.headers import SERVICE_ERROR, SERVICE_ERROR_CODE, Headers
from nats_taskflow.wire.subjects import covers

_STOP_TIMEOUT = 2.0
_QUEUE = "q"

Accept = Callable[[str, str, bytes, Headers | None], None]


class EndpointCounts(msgspec.Struct):
    """An endpoint's figures.

    `count`: answers. `time`: nanoseconds from arrival until the answer was written, for all of them.
    """

    requests: int = 0
    count: int = 0
    time: int = 0
    errors: int = 0
    last_error: str = ""

    def add(self, headers: Headers, time: int) -> None:
        """Count an answer, and an error where its headers say so."""
        self.count += 1
        self.time += time
        if SERVICE_ERROR_CODE in headers:
            self.errors += 1
            self.last_error = f"{headers[SERVICE_ERROR_CODE]}: {headers.get(SERVICE_ERROR, '')}"


class ListedEndpoint(MicroEndpoint):
    """An endpoint in `$SRV.INFO` and `$SRV.STATS` without a subscription.

    The subscription of a catch-all serves every endpoint it covers. With a subscription for each, the server would send the catch-all a
    copy of every request.
    """

    def __init__(self, service: MicroService, endpoint: Endpoint) -> None:
        metadata = dict(endpoint.metadata)
        config = EndpointConfig(name=endpoint.name, handler=_ignore, queue_group=_QUEUE, subject=endpoint.subject, metadata=metadata)
        super().__init__(service, config)

    async def _stop(self) -> None:
        """Do nothing: it was never started."""


async def _ignore(_request: MicroRequest) -> None:
    """Do nothing: a `ListedEndpoint` gets no request."""


class ServiceServer:
    """Serves one `Service` on a connection."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._admission: Admission | None = None
        self._micro: MicroService | None = None
        self._subscriptions: list[Subscription] = []
        self._counts: defaultdict[str, EndpointCounts] = defaultdict(EndpointCounts)
        self._log = structlog.get_logger()

    async def start(self, service: Service, handler: RequestHandler) -> None:
        """Register the service's endpoints."""
        self._admission = Admission(handler, service.caller_of)
        accept = self._make_accept(service, self._admission)

        def take(subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
            # In the read loop: nats-py has one queue for all callers.
            read = read_headers(headers) if headers else None
            accept(subject.decode("utf-8", "replace"), reply.decode("utf-8", "replace"), body, read)

        async def on_message(msg: Msg) -> None:
            # It came before `read_directly`.
            accept(msg.subject, msg.reply, msg.data, msg.headers)

        client = self._connection.client
        self._micro = await micro.add_service(
            client, name=service.name, version=service.version, description=service.description, stats_handler=self._fill_in
        )
        listed = [ListedEndpoint(self._micro, endpoint) for endpoint in service.endpoints + service.catch_all]
        self._micro._endpoints.extend(listed)  # noqa: SLF001  its `add_endpoint` subscribes
        for pattern in service.patterns:
            subscription = await client.subscribe(pattern, queue=_QUEUE, cb=on_message)
            client.read_directly(subscription, take)
            self._subscriptions.append(subscription)
        await self._connection.flush()  # from here on, the server tells nobody that nobody answers

    def _make_accept(self, service: Service, admission: Admission) -> Accept:
        """Return the function that takes a request."""

        @lru_cache(maxsize=1024)
        def pattern_of(subject: str) -> str:
            listed = service.endpoints + service.catch_all
            return next(endpoint.subject for endpoint in listed if covers(endpoint.subject, subject))

        def accept(subject: str, reply: str, body: bytes, headers: Headers | None) -> None:
            """Admit a request, unless its answer would go where it must not."""
            pattern = pattern_of(subject)
            self._counts[pattern].requests += 1
            if service.guards(reply):
                self._log.warning("service.answer_withheld", subject=subject, reply=reply)
                return
            answer = self._make_answer(pattern, reply)
            admission.put(ServiceRequest(subject=subject, headers=headers or NO_HEADERS, body=body, answer=answer))

        return accept

    async def stop(self) -> None:
        """Deregister, then wait for the requests in hand. Never raises."""
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await self._drain()
                if self._micro is not None:
                    await self._micro.stop()
        except Exception as error:  # noqa: BLE001  without a connection nothing is left to deregister
            self._log.debug("service.stop_failed", reason=repr(error))
        self._micro = None
        self._connection.outbound.hurry()
        if self._admission is not None:
            await self._admission.finish()

    @property
    def refused(self) -> int:
        """How many requests were turned away."""
        return self._admission.refused if self._admission is not None else 0

    async def _drain(self) -> None:
        """Unsubscribe at the server, and take what it has sent.

        nats-py would forget the subscription before that has come.
        """
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await self._connection.client._send_unsubscribe(subscription._id)  # noqa: SLF001  the public way forgets it at once
        await self._connection.flush()
        for subscription in subscriptions:
            await subscription.unsubscribe()

    def _make_answer(self, pattern: str, reply: str) -> Callable[[bytes, Headers], Coroutine[Any, Any, None]]:
        """Return the function that answers a request.

        The request has just come to the endpoint on `pattern`.
        """
        began = perf_counter_ns()

        async def answer(body: bytes, headers: Headers) -> None:
            sent = self._answer(reply, body, headers)
            self._counts[pattern].add(sent, perf_counter_ns() - began)
            await self._connection.outbound.wait_for_room()

        return answer

    def _fill_in(self, stats: EndpointStats) -> None:
        """Complete the figures of `$SRV.STATS`: nats-py does not see the requests."""
        counts = self._counts[stats.subject]
        stats.num_requests = counts.requests
        stats.num_errors, stats.last_error = counts.errors, counts.last_error
        stats.processing_time, stats.average_processing_time = counts.time, counts.time // max(counts.count, 1)

    def _answer(self, reply: str, body: bytes, headers: Headers) -> Headers:
        """Publish an answer. Returns the headers of what was sent.

        An answer that is too large goes as an error.
        """
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
