"""What may be asked about the worker's health, whoever carries the question.

HTTP, `taskflow doctor`, an operator's request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class HealthCheck(msgspec.Struct, frozen=True):
    """The result of one check.

    `reason`: in a few words why it failed; `remark`: what is worth knowing although it passed.
    """

    name: str
    ok: bool
    reason: str = ""
    remark: str = ""


class HealthProbes(Protocol):
    """Answers the three questions of Kubernetes.

    A call reads the present state, returns at once and never raises.
    """

    def live(self) -> Sequence[HealthCheck]:
        """Check whether the process works at all. If not: restart it."""
        ...

    def ready(self) -> Sequence[HealthCheck]:
        """Check whether it does its work now.

        NATS connected, store writable, not stopping.
        """
        ...

    def started(self) -> Sequence[HealthCheck]:
        """Check whether the start is over."""
        ...
