"""What a span shows of a journal entry, and where spans go.

`trace` makes the records, `otel` exports them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from nats_taskflow.flow.lifecycle import EventKind, FlowStatus

SpanCount = Callable[[str, int], None]
"""Counts spans by what became of them: `exported`, `failed` or `dropped`. Called on any thread."""


class SpanPlace(NamedTuple):
    """A journal entry that is part of a trace: what a link points to."""

    flow_id: str
    seq: int
    trace: str


class SpanRecord(NamedTuple):
    """What a span shows of a journal entry. It carries nothing of a payload.

    `ends`: the entry ended a wait. `parked`: the entry that began that wait, if it was part of a trace. `known`: `parked` is certain,
    and need not be looked up.
    """

    flow_id: str
    seq: int
    kind: EventKind
    began_ns: int
    committed_ns: int
    trace: str | None
    actor: str
    agent: str | None
    controller_id: str
    step: str
    revision: int
    status: FlowStatus
    cause: str | None
    correlation_id: str | None
    wait_kind: str | None = None
    resumed_by: str | None = None
    ends: bool = False
    parked: SpanPlace | None = None
    known: bool = True


class SpanSink(Protocol):
    """An exporter of spans. Only `close` blocks."""

    @property
    def full(self) -> bool:
        """Whether it takes no more at the moment."""
        ...

    def begin(self, record: SpanRecord) -> Any | None:
        """Begin a span; None where the sampler does not want it."""
        ...

    def end(self, span: Any, record: SpanRecord, parked: SpanPlace | None) -> None:
        """End the span, linked to the one of the entry that parked the flow."""
        ...

    def close(self) -> None:
        """Send what is left, however long that takes."""
        ...
