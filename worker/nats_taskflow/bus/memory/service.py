"""Register the micro service at the broker in the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from nats_taskflow.bus.admission import TOO_LARGE, TOO_LARGE_HEADERS, Admission
from nats_taskflow.bus.endpoints import Service, ServiceRequest
from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker, Subscriber
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.port import Bus, Headers

Handler = Callable[[ServiceRequest], Awaitable[None]]


class MemoryServer:
    """The service of one connection."""

    def __init__(self, bus: Bus, broker: MemoryBroker) -> None:
        self._bus = bus
        self._broker = broker
        self._served: Subscriber | None = None
        self._admission: Admission | None = None

    def start(self, service: Service, handler: Handler) -> None:
        """Register the service's endpoints and its catch-all."""
        admission = self._admission = Admission(handler, service.caller_of)

        def take(heard: CoreMessage) -> None:
            """Have a request admitted."""
            if self._bus.connected and not service.guards(heard.reply):
                answer = partial(self._answer, heard.reply)
                admission.put(ServiceRequest(subject=heard.subject, headers=heard.headers, body=heard.body, answer=answer))

        self._served = Subscriber(service.patterns, take)
        self._broker.subscribers.append(self._served)

    async def stop(self) -> None:
        """Deregister, and wait for the requests in hand."""
        self.deregister()
        if self._admission is not None:
            await self._admission.finish()

    @property
    def refused(self) -> int:
        """How many requests were not admitted."""
        return self._admission.refused if self._admission is not None else 0

    def deregister(self) -> None:
        """Take the service off the broker."""
        served, self._served = self._served, None
        if served is not None:
            self._broker.subscribers.remove(served)

    async def _answer(self, reply: str, body: bytes, headers: Headers) -> None:
        """Answer a request."""
        if objection(reply or "nobody", body, headers, self._bus.max_payload) is not None:
            body, headers = TOO_LARGE, TOO_LARGE_HEADERS
        if reply:
            await self._bus.tell(reply, body, headers)
