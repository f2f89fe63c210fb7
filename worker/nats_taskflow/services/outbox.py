"""Turn committed rows into messages for the relay.

Journal entries become CloudEvents. Dead letters become the messages that came.
"""

from __future__ import annotations

from collections.abc import Callable

from nats_taskflow.bus.port import Bus, OutgoingMessage
from nats_taskflow.services.outbox_message import OutboxMessage
from nats_taskflow.services.relay import ReadRows, RowsOfBatch
from nats_taskflow.store.port import Reads
from nats_taskflow.store.records import Batch, NumberedEvent
from nats_taskflow.wire.dead_letters import dead_letter_message
from nats_taskflow.wire.events import EventMessage, event_message, is_same_event
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.subjects import Subjects


def read_events(store: Reads, subjects: Subjects) -> ReadRows:
    """Return a function that reads journal entries as events. A flow is a lane."""

    async def read(after: int, limit: int) -> list[OutboxMessage]:
        rows = await store.unpublished_events(after, limit)
        return [OutboxMessage(row.n, row.flow_id, _event(row, subjects), row.owner_session_key) for row in rows]

    return read


def events_of_batch(subjects: Subjects) -> RowsOfBatch:
    """Return a function that makes the events of a committed batch.

    They are byte for byte what `read_events` reads later.
    """

    def rows_of(batch: Batch) -> list[OutboxMessage]:
        flows = {write.flow.id: write.flow for write in batch.flows}
        rows = []
        for n, event in enumerate(batch.events, batch.first_event):
            flow = flows[event.flow_id]
            message = _outgoing(event_message(event, flow.controller_id, flow.owner_session_key, subjects), is_same_event)
            rows.append(OutboxMessage(n, event.flow_id, message, flow.owner_session_key))
        return rows

    return rows_of


def _event(row: NumberedEvent, subjects: Subjects) -> OutgoingMessage | None:
    if row.event is None:
        return None
    return _outgoing(event_message(row.event, row.controller_id, row.owner_session_key, subjects), is_same_event)


def read_dead_letters(store: Reads, bus: Bus, subjects: Subjects) -> ReadRows:
    """Return a function that reads dead letters as messages. Each is its own lane.

    The messages are no larger than the broker takes.
    """

    async def read(after: int, limit: int) -> list[OutboxMessage]:
        rows = []
        for row in await store.unpublished_dead_letters(after, limit):
            message = dead_letter_message(row, subjects, max_bytes=bus.max_payload)
            sender = row.subject.rpartition(".")[0]  # `taskflow.cmd.kate`: each agent has subjects of its own
            rows.append(OutboxMessage(row.n, f"dead:{row.n}", _outgoing(message, lambda _stored, _body: True), sender))
        return rows

    return read


def _outgoing(message: EventMessage, is_same: Callable[[bytes, bytes], bool]) -> OutgoingMessage:
    headers = dict(message.headers)
    msg_id = headers.pop(MSG_ID)
    return OutgoingMessage(subject=message.subject, body=message.body, msg_id=msg_id, headers=headers, is_same=is_same)
