"""Encode a journal entry as a CloudEvent 1.0 in structured JSON mode (CONTRACT 4).

The keys have a fixed order, and nothing but the entry goes in: a repeat has the same bytes, and subscribers can deduplicate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.flow.ids import agent_of
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.units import rfc3339
from nats_taskflow.wire.headers import CONTENT_TYPE, MSG_ID, TRACEPARENT
from nats_taskflow.wire.subjects import Subjects

SOURCE = "/taskflow"
_FIRST = f"{1:010d}"
MEDIA_TYPE = "application/cloudevents+json"
_ENCODER = msgspec.json.Encoder()


class EventMessage(NamedTuple):
    """A message to publish."""

    subject: str
    body: bytes
    headers: dict[str, str]


class EventData(msgspec.Struct, frozen=True, kw_only=True):
    """The event's data: the flow after the change, and the journal entry's payload."""

    kind: EventKind
    revision: int
    status: FlowStatus
    previous_status: FlowStatus | None
    controller_id: str
    owner_session_key: str
    current_step: str
    payload: dict[str, Any]


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The event.

    `sequence` and the correlation attributes are documented CloudEvents extensions; absent ones are left out.
    """

    specversion: str = "1.0"
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str = "application/json"
    sequence: str
    correlationid: str | UnsetType = UNSET
    causationid: str | UnsetType = UNSET
    data: EventData


def event_id(event: FlowEvent) -> str:
    """Return the event's id, which is also its `Nats-Msg-Id`."""
    return f"{event.flow_id}:{event.seq}"


def is_same_event(stored: bytes, body: bytes) -> bool:
    """Return whether two events with one id are the same.

    They are if they are of one kind and, as the first of a flow, of one cause. A restored database decides again what it does not know,
    later than the first time, and a race may end differently then. A flow under the id of a pruned one begins for another cause; its other
    events wait behind the first.
    """
    try:
        return stored == body or _IDENTITY.decode(stored) == _IDENTITY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


class _Identity(msgspec.Struct):
    """The fields by which an event is the same, whenever it was decided."""

    id: str
    type: str
    sequence: str
    causationid: str = ""

    def __post_init__(self) -> None:
        if self.sequence != _FIRST:
            self.causationid = ""


_IDENTITY = msgspec.json.Decoder(_Identity)


def event_message(
    event: FlowEvent, controller_id: str, owner_session_key: str, subjects: Subjects, *, source: str = SOURCE
) -> EventMessage:
    """Return the message that publishes a journal entry."""
    name = event_id(event)
    cloud = CloudEvent(
        id=name,
        source=source,
        type=f"taskflow.flow.{event.kind.value}.v1",
        subject=event.flow_id,
        time=rfc3339(event.at_us),
        sequence=f"{event.seq:010d}",
        correlationid=event.correlation_id or UNSET,
        causationid=event.cause or UNSET,
        data=EventData(
            kind=event.kind,
            revision=event.revision,
            status=event.status,
            previous_status=event.previous_status,
            controller_id=controller_id,
            owner_session_key=owner_session_key,
            current_step=event.current_step,
            payload=event.payload,
        ),
    )
    headers = {MSG_ID: name, CONTENT_TYPE: MEDIA_TYPE}
    if event.trace is not None:
        headers[TRACEPARENT] = event.trace
    return EventMessage(subjects.event(agent_of(owner_session_key), event.flow_id, event.kind.value), _ENCODER.encode(cloud), headers)
