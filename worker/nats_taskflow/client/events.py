"""Decode published events (CONTRACT 4) for agents."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from nats_taskflow.client.errors import InvalidRequest
from nats_taskflow.client.transport import TransportMessage
from nats_taskflow.flow.lifecycle import EventKind

TERMINAL = frozenset({"finished", "failed", "cancelled"})
_FLOWS_REMEMBERED = 100_000


class _EventData(msgspec.Struct):
    """The event's data.

    `kind` and the statuses are text: a newer worker may have more of them.
    """

    kind: str
    revision: int
    status: str
    previous_status: str | None
    controller_id: str
    owner_session_key: str
    current_step: str
    payload: dict[str, Any]


class _CloudEvent(msgspec.Struct):
    """The event as it is published; attributes that we do not know are left out."""

    specversion: str
    id: str
    subject: str
    time: datetime
    sequence: str
    data: _EventData
    correlationid: str | None = None
    causationid: str | None = None


_DECODER = msgspec.json.Decoder(_CloudEvent)


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """What made a flow run again.

    `cause`: `event` (a reply), `timer`, `timeout` or `manual`. `payload`: the reply's payload; for composite waits an object keyed by the
    number of the leaf; the patch of a person; None for a timer. `revision` is the flow's after the resume.
    """

    cause: str
    payload: Any = None
    topic: str | None = None
    correlation_id: str | None = None
    reason: str | None = None
    revision: int = 0

    @property
    def timed_out(self) -> bool:
        """Whether the wait's own time ran out."""
        return self.cause == "timeout"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted change of a flow.

    `seq` counts the flow's events from 1 without gaps, `revision` its changes; `id` is `<flow_id>:<seq>`. `status` and `current_step` are
    the flow's after the change, `payload` is the journal's. `cause` is the id of the command or reply behind it; whether that was a
    reply, a person or time, says `resumed`. `stream_seq` is its place in the stream: `flows.events(after=…)` goes on behind it.
    """

    id: str
    flow_id: str
    seq: int
    kind: str
    revision: int
    status: str
    previous_status: str | None
    controller_id: str
    owner_session_key: str
    current_step: str
    payload: dict[str, Any]
    at: datetime
    cause: str | None
    correlation_id: str | None
    stream_seq: int

    @property
    def terminal(self) -> bool:
        """Whether the flow ended with it."""
        return self.kind in TERMINAL

    @property
    def reply(self) -> Any:
        """What a `resumed` event brought.

        The payload of the reply, `{"timed_out": True}`, or the patch of a person; None for a timer. For composite waits an object keyed by
        the number of the leaf, `{"0": …}`.
        """
        return read_resume(self.payload, self.revision).payload

    @property
    def resumed(self) -> Resumed | None:
        """What made the flow run again, as `flow.resumed()` has it; None for other kinds."""
        return read_resume(self.payload, self.revision) if self.kind == "resumed" else None

    @property
    def session(self) -> str:
        """The session that the flow belongs to."""
        return self.owner_session_key.partition(":session:")[2]


def read_resume(payload: dict[str, Any], revision: int) -> Resumed:
    """Decode the journal's payload of a resume."""
    patch = dict(payload.get("patch") or {})
    meta = patch.pop("resume_meta", None) or {}
    content = patch.get("resume_event") if "resume_event" in patch else (patch or None)
    return Resumed(
        cause=meta.get("cause") or payload.get("cause") or "timer",
        payload=content,
        topic=meta.get("topic"),
        correlation_id=meta.get("correlation_id"),
        reason=payload.get("reason"),
        revision=revision,
    )


def check_kinds(names: Iterable[str]) -> frozenset[str]:
    """Return the named kinds of events.

    Raises `InvalidRequest` for one that does not exist: it would never come.
    """
    kinds = frozenset({names} if isinstance(names, str) else names)
    for kind in kinds:
        if kind not in set(EventKind):
            raise InvalidRequest(f"there are no events of kind {kind!r}; kinds are {', '.join(EventKind)}", path="/kinds")
    return kinds


def read_event(message: TransportMessage) -> Event | None:
    """Decode the event in a stream's message; None for what is none.

    None also where the subject names another event. Such messages can be put there: whoever publishes into a stream chooses where the
    acknowledgement goes (docs/securing.md, "Acknowledgements").
    """
    try:
        cloud = _DECODER.decode(message.body)
    except (ValueError, RecursionError):
        return None
    data = cloud.data
    if not message.subject.endswith(f".{cloud.subject}.{data.kind}") or not cloud.sequence.isdigit():
        return None
    return Event(
        id=cloud.id,
        flow_id=cloud.subject,
        seq=int(cloud.sequence),
        kind=data.kind,
        revision=data.revision,
        status=data.status,
        previous_status=data.previous_status,
        controller_id=data.controller_id,
        owner_session_key=data.owner_session_key,
        current_step=data.current_step,
        payload=data.payload,
        at=cloud.time,
        cause=cloud.causationid,
        correlation_id=cloud.correlationid,
        stream_seq=message.seq,
    )


class EventDedupe:
    """Recognises repeated events by the highest `seq` of each flow.

    The worker publishes at least once. Repeats come soon, so that the flows that have been silent for longest are forgotten when there are
    too many.
    """

    def __init__(self, flows: int = _FLOWS_REMEMBERED) -> None:
        self._most = flows
        self._high: dict[str, int] = {}

    def is_repeat(self, event: Event) -> bool:
        """Return whether the event, or a later one of its flow, has been seen."""
        return event.seq <= self._high.get(event.flow_id, 0)

    def add(self, event: Event) -> None:
        """Record the event as seen."""
        self._high.pop(event.flow_id, None)
        self._high[event.flow_id] = event.seq
        if len(self._high) > self._most:
            del self._high[next(iter(self._high))]
