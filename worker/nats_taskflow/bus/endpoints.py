"""Describe the micro service that a bus registers, and the requests that it hands over."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from nats_taskflow.wire.headers import Headers
from nats_taskflow.wire.subjects import covers

NO_METADATA: Headers = {}


def _whoever(_subject: str) -> str:
    """Tell nobody from anybody."""
    return ""


class ServiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A core request on a service endpoint. `answer` publishes the reply and returns when it has left, or never will; it never raises."""

    subject: str
    headers: Headers
    body: bytes
    answer: Callable[[bytes, Headers], Coroutine[Any, Any, None]]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One verb of the micro service: `subject` may have wildcards; `metadata` shows in `nats micro info`."""

    name: str
    subject: str
    metadata: Headers = NO_METADATA


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The micro service (`$SRV.PING|INFO|STATS`). `catch_all`: takes requests that no other endpoint covers.

    `guarded`: patterns. Whoever asks chooses where the answer goes, and the worker may publish where its callers may not: a request whose
    reply subject is guarded, or is one of the server's own (`$…`), is not carried out (a confused deputy).
    `caller_of`: who asks, by the subject; they take turns.
    """

    name: str
    version: str
    description: str
    endpoints: tuple[Endpoint, ...]
    catch_all: tuple[Endpoint, ...] = ()
    guarded: tuple[str, ...] = ()
    caller_of: Callable[[str], str] = _whoever

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is subscribed to, so that each request comes once: the catch-alls, and the endpoints that none of them covers."""
        rest = tuple(endpoint.subject for endpoint in self.catch_all)
        return rest + tuple(each.subject for each in self.endpoints if not any(covers(pattern, each.subject) for pattern in rest))

    def guards(self, reply: str) -> bool:
        """Tell whether no answer may go to the subject."""
        return reply.startswith("$") or any(covers(pattern, reply) for pattern in self.guarded)
