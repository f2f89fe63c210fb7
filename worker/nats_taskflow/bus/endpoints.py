"""Describe the micro service that a bus registers, and the requests it passes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from nats_taskflow.wire.headers import Headers
from nats_taskflow.wire.subjects import covers

NO_METADATA: Headers = {}


def _one_caller(_subject: str) -> str:
    return ""


class ServiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A core request on a service endpoint.

    `answer` publishes the reply and returns once it has left or never will. It never raises.
    """

    subject: str
    headers: Headers
    body: bytes
    answer: Callable[[bytes, Headers], Coroutine[Any, Any, None]]


RequestHandler = Callable[[ServiceRequest], Awaitable[None]]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One verb of the micro service.

    `subject` may have wildcards; `nats micro info` shows `metadata`.
    """

    name: str
    subject: str
    metadata: Headers = NO_METADATA


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The micro service (`$SRV.PING|INFO|STATS`).

    `catch_all` endpoints take the requests that no other endpoint covers. `guarded` are subject patterns. A caller chooses where its answer
    goes, and the worker may publish where callers may not (a confused deputy). So a request is dropped if its reply subject is guarded, or
    is one of the server's own (`$…`). `caller_of` reads the caller from a subject; callers take turns.
    """

    name: str
    version: str
    description: str
    endpoints: tuple[Endpoint, ...]
    catch_all: tuple[Endpoint, ...] = ()
    guarded: tuple[str, ...] = ()
    caller_of: Callable[[str], str] = _one_caller

    @property
    def patterns(self) -> tuple[str, ...]:
        """The subjects to subscribe to, so that each request comes once.

        They are the catch-alls, and the endpoints that none of them covers.
        """
        wide = tuple(endpoint.subject for endpoint in self.catch_all)
        narrow = (endpoint.subject for endpoint in self.endpoints)
        return wide + tuple(subject for subject in narrow if not any(covers(pattern, subject) for pattern in wide))

    def guards(self, reply: str) -> bool:
        """Return whether answers must not go to this subject."""
        return reply.startswith("$") or any(covers(pattern, reply) for pattern in self.guarded)
