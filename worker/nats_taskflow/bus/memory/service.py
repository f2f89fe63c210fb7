"""Serve the micro service at the broker in the process."""

from __future__ import annotations

from functools import partial

from nats_taskflow.bus.admission import TOO_LARGE, TOO_LARGE_HEADERS, Admission
from nats_taskflow.bus.endpoints import RequestHandler, Service, ServiceRequest
from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker, Subscriber
from nats_taskflow.bus.message_limits import objection
from nats_taskflow.bus.port import Bus
from nats_taskflow.wire.headers import Headers


class MemoryServer:
    """One connection's service."""

    def __init__(self, bus: Bus, broker: MemoryBroker) -> None:
        self._bus = bus
        self._broker = broker
        self._subscriber: Subscriber | None = None
        self._admission: Admission | None = None

    def start(self, service: Service, handler: RequestHandler) -> None:
        """Register the service's endpoints and its catch-alls."""
        admission = self._admission = Admission(handler, service.caller_of)

        def take(message: CoreMessage) -> None:
            if self._bus.connected and not service.guards(message.reply):
                answer = partial(self._answer, message.reply)
                admission.put(ServiceRequest(subject=message.subject, headers=message.headers, body=message.body, answer=answer))

        self._subscriber = Subscriber(service.patterns, take)
        self._broker.subscribers.append(self._subscriber)

    async def stop(self) -> None:
        """Deregister, then wait for the requests in hand."""
        self.deregister()
        if self._admission is not None:
            await self._admission.finish()

    @property
    def refused(self) -> int:
        """How many requests were turned away."""
        return self._admission.refused if self._admission is not None else 0

    def deregister(self) -> None:
        """Unsubscribe. Idempotent."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            self._broker.subscribers.remove(subscriber)

    async def _answer(self, reply: str, body: bytes, headers: Headers) -> None:
        """Publish an answer; one that is too large goes as an error."""
        if not reply:
            return  # a publish, not a request: nobody waits
        if objection(reply, body, headers, self._bus.max_payload) is not None:
            body, headers = TOO_LARGE, TOO_LARGE_HEADERS
        await self._bus.tell(reply, body, headers)
