"""Read the outbox: committed rows become messages for the relay, journal entries as CloudEvents, dead letters as they came."""

from __future__ import annotations

from collections.abc import Callable

from nats_taskflow.bus.port import Bus, OutgoingMessage
from nats_taskflow.services.outbox_message import OutboxMessage
from nats_taskflow.services.relay import Fresh, Read
from nats_taskflow.store.port import Reads
from nats_taskflow.store.records import Batch, NumberedEvent
from nats_taskflow.wire.dead_letters import dead_letter_message
from nats_taskflow.wire.events import EventMessage, event_message, is_same_event
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.subjects import Subjects


def read_events(store: Reads, subjects: Subjects) -> Read:
    """Read journal entries as events; a flow is a lane."""

    async def read(after: int, limit: int) -> list[OutboxMessage]:
        """Return the entries after `after`, at most `limit`."""
        rows = await store.unpublished_events(after, limit)
        return [OutboxMessage(row.n, row.flow_id, _event(row, subjects), row.owner_session_key) for row in rows]

    return read


def events_of_batch(subjects: Subjects) -> Fresh:
    """Make the events of a batch that was just committed, as they would be read: byte for byte the same."""

    def fresh(batch: Batch) -> list[OutboxMessage]:
        """Return its entries in their order."""
        flows = {write.flow.id: write.flow for write in batch.flows}
        letters = []
        for n, event in enumerate(batch.events, batch.first_event):
            flow = flows[event.flow_id]
            message = _outgoing(event_message(event, flow.controller_id, flow.owner_session_key, subjects), is_same_event)
            letters.append(OutboxMessage(n, event.flow_id, message, flow.owner_session_key))
        return letters

    return fresh


def _event(row: NumberedEvent, subjects: Subjects) -> OutgoingMessage | None:
    """Return the event of a journal entry, if that can be read."""
    if row.event is None:
        return None
    return _outgoing(event_message(row.event, row.controller_id, row.owner_session_key, subjects), is_same_event)


def read_dead_letters(store: Reads, bus: Bus, subjects: Subjects) -> Read:
    """Read dead letters as messages no larger than the broker takes; each is a lane of its own."""

    async def read(after: int, limit: int) -> list[OutboxMessage]:
        """Return the letters after `after`, at most `limit`."""
        found = []
        for row in await store.unpublished_dead_letters(after, limit):
            message = dead_letter_message(row, subjects, max_bytes=bus.max_payload)
            sender = row.subject.rpartition(".")[0]  # `taskflow.cmd.kate`: each agent has subjects of its own
            found.append(OutboxMessage(row.n, f"dead:{row.n}", _outgoing(message, lambda _stored, _body: True), sender))
        return found

    return read


def _outgoing(message: EventMessage, is_same: Callable[[bytes, bytes], bool]) -> OutgoingMessage:
    """Return the message as the bus takes it: the id has a place of its own."""
    headers = dict(message.headers)
    msg_id = headers.pop(MSG_ID)
    return OutgoingMessage(subject=message.subject, body=message.body, msg_id=msg_id, headers=headers, is_same=is_same)
