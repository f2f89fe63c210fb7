"""Turn rows into structs and back: the one place that knows the columns' order.

JSON columns are selected as BLOBs. The decoder reads bytes anyway, and where they are no text only one row is damaged; of a TEXT column
SQLite would refuse the whole result (SEMANTICS R13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nats_taskflow.flow.lifecycle import EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import DelegateMessage, Flow, FlowEvent, FlowStep, HeldReply
from nats_taskflow.store.records import DeadLetter, InboxRow

Row = Sequence[Any]
_encode = msgspec.json.encode
_decode = msgspec.json.decode
_STATUS = {status.value: status for status in FlowStatus}  # a look-up costs a tenth of what the enumeration's call does
_TEXT_OF = {member: member.value for kind in (FlowStatus, EventKind) for member in kind}
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class UnreadableRow(ValueError):
    """A stored row cannot be read; the message says which."""


def legible(stored: bytes) -> str:
    """Decode stored text, damaged text too.

    One label must not keep other rows from being read.
    """
    return stored.decode("utf-8", "replace")


def text(value: Any) -> str:
    """Return the JSON text of a value, as the tables keep it."""
    return _encode(value).decode()


def maybe(value: Any) -> str | None:
    """Return the JSON text of a value, or None for None."""
    return None if value is None else _encode(value).decode()


def flow(row: Row) -> Flow:
    """Return the flow of a row of `flows` (without `n`). Raises `UnreadableRow`."""
    if row[19] is not None:
        raise UnreadableRow(row[19])
    try:
        read = Flow(
            id=row[0],
            controller_id=row[1],
            goal=row[2],
            owner_session_key=row[3],
            requester_origin=row[4],
            current_step=row[5],
            status=_STATUS.get(row[6]) or FlowStatus(row[6]),
            cancel_requested=bool(row[7]),
            state_json=_decode(row[8]),
            wait_json=_OBJECT.decode(row[9]) if row[9] is not None else None,
            wait_id=row[10],
            parked_us=row[11],
            progress=_OBJECT.decode(row[12]) if row[12] is not None else None,
            revision=row[13],
            seq=row[14],
            created_us=row[15],
            updated_us=row[16],
            parent_flow_id=row[17],
            hops=row[18],
        )
        if read.wait_json is not None:
            _ = read.condition  # or a wait that cannot be read would only fail when it is due
        read.__dict__["state_stored"] = row[8]
    except (ValueError, RecursionError) as bad:
        message = f"flow {row[0]}: {bad}"
        raise UnreadableRow(message) from bad
    return read


def flows(numbered: Sequence[Row]) -> list[tuple[int, Flow]]:
    """Return the flows of the rows that can be read, each with its number.

    A row begins with the number.
    """
    readable = []
    for row in numbered:
        try:
            readable.append((row[0], flow(row[1:])))
        except UnreadableRow:
            continue
    return readable


def flow_insert(n: int, flow: Flow, due_us: int | None, key: str | None) -> tuple[Any, ...]:
    """Return the values of `insert_flow`."""
    fixed = (n, flow.id, flow.controller_id, flow.goal, flow.owner_session_key, flow.requester_origin)
    written = (flow.revision, flow.seq, flow.created_us, flow.updated_us)
    return (*fixed, *_changing(flow), *written, due_us, key, flow.parent_flow_id, flow.hops)


def flow_update(n: int, flow: Flow, was: Flow, due_us: int | None) -> tuple[Any, ...]:
    """Return the values of `update_flow`.

    It changes only the row that the batch saw.
    """
    return (*_changing(flow), flow.revision, flow.seq, flow.updated_us, due_us, n, was.revision, was.seq)


def _changing(flow: Flow) -> tuple[Any, ...]:
    # The values that change while a flow runs, in the order that both statements have them.
    waiting = (maybe(flow.wait_json), flow.wait_id, flow.parked_us, maybe(flow.progress))
    return (flow.current_step, _TEXT_OF[flow.status], int(flow.cancel_requested), flow.state_stored.decode(), *waiting)


def event(row: Row) -> FlowEvent:
    """Return the journal entry of a row. Raises `UnreadableRow`."""
    try:
        return FlowEvent(
            flow_id=row[0],
            seq=row[1],
            revision=row[2],
            kind=EventKind(row[3]),
            payload=_decode(row[4]),
            at_us=row[5],
            actor=row[6],
            status=FlowStatus(row[7]),
            previous_status=FlowStatus(row[8]) if row[8] is not None else None,
            current_step=row[9],
            cause=row[10],
            correlation_id=row[11],
            trace=row[12],
        )
    except (ValueError, RecursionError) as bad:
        message = f"journal entry {row[0]}:{row[1]}: {bad}"
        raise UnreadableRow(message) from bad


def maybe_event(row: Row) -> FlowEvent | None:
    """Return the journal entry of a row, None where it cannot be read."""
    try:
        return event(row)
    except UnreadableRow:
        return None


def event_insert(n: int, flow: int, entry: FlowEvent, epoch: int) -> tuple[Any, ...]:
    """Return the values of `insert_event`."""
    by = (entry.at_us, entry.actor, entry.cause)
    status = (_TEXT_OF[entry.status], _TEXT_OF[entry.previous_status] if entry.previous_status else None, entry.current_step)
    written = (n, flow, entry.seq, entry.revision, _TEXT_OF[entry.kind], text(entry.payload))
    return (*written, *by, *status, entry.correlation_id, entry.trace, epoch)


def step(row: Row) -> FlowStep:
    """Return the observed run of a row."""
    return FlowStep(
        id=row[0],
        flow_id=row[1],
        runtime=row[2],
        child_session_key=row[3],
        run_id=row[4],
        task=row[5],
        status=FlowStepStatus(row[6]),
        result_json=_decode(row[7]),
        created_us=row[8],
        updated_us=row[9],
    )


def step_upsert(n: int, step: FlowStep) -> tuple[Any, ...]:
    """Return the values of `upsert_step`."""
    run = (step.runtime, step.child_session_key, step.run_id, step.task, step.status.value, text(step.result_json))
    return (step.id, n, *run, step.created_us, step.updated_us)


def held(row: Row) -> HeldReply:
    """Return the held reply of a row. Raises `UnreadableRow`."""
    try:
        payload = _decode(row[3]) if row[3] else msgspec.UNSET
    except (ValueError, RecursionError) as bad:
        message = f"held reply for ({row[0]}, {row[1]}): {bad}"
        raise UnreadableRow(message) from bad
    more = {"arrived_us": row[4], "expires_us": row[5], "key": row[6], "flow_id": row[7], "trace": row[8], "tenant": row[9]}
    return HeldReply(topic=row[0], correlation_id=row[1], event_id=row[2], payload=payload, **more)


def held_mark(row: Row) -> HeldReply:
    """Return the held reply of a row that was selected without its payload.

    The payload may be large and is not needed.
    """
    times = {"arrived_us": row[3], "expires_us": row[4]}
    return HeldReply(topic=row[0], correlation_id=row[1], event_id=row[2], payload=msgspec.UNSET, key=row[5], tenant=row[6], **times)


def held_insert(reply: HeldReply) -> tuple[Any, ...]:
    """Return the values of `insert_held`.

    A reply without payload is kept as empty text.
    """
    payload = "" if reply.payload is msgspec.UNSET else text(reply.payload)
    pair = (reply.topic, reply.correlation_id, reply.event_id)
    return (*pair, payload, reply.arrived_us, reply.expires_us, reply.key, reply.flow_id, reply.trace, reply.tenant)


def outgoing(row: Row) -> DelegateMessage:
    """Return the message to a delegate of a row."""
    headers = _decode(row[4])
    return DelegateMessage(flow_id=row[0], wait_id=row[1], kind=row[2], subject=row[3], headers=headers, body=row[5], reply=row[6])


def outgoing_insert(n: int, message: DelegateMessage, now: int) -> tuple[Any, ...]:
    """Return the values of `insert_outgoing`."""
    return (n, message.wait_id, message.kind, message.subject, message.reply, text(message.headers), message.body, now)


def inbox(row: Row) -> InboxRow:
    """Return the message of a row."""
    return InboxRow(scope=row[0], key=row[1], digest=row[2], outcome=row[3], result=row[4], source=row[5], source_seq=row[6], at_us=row[7])


def inbox_insert(row: InboxRow) -> tuple[Any, ...]:
    """Return the values of `insert_inbox`."""
    return (row.scope, row.key, row.digest, row.outcome, row.result, row.source, row.source_seq, row.at_us)


def dead_letter(row: Row) -> DeadLetter:
    """Return the dead letter of a row.

    Headers that cannot be read are left out: the body is what matters.
    """
    try:
        headers = _decode(row[6], type=dict[str, str])
    except ValueError:
        headers = {}
    return DeadLetter(
        n=row[0],
        reason=row[1],
        message=row[2],
        subject=row[3],
        stream=row[4],
        seq=row[5],
        headers=headers,
        body=row[7],
        at_us=row[8],
    )


def dead_letter_insert(letter: DeadLetter) -> tuple[Any, ...]:
    """Return the values of `insert_dead_letter`."""
    place = (letter.subject, letter.stream, letter.seq)
    return (letter.reason, letter.message, *place, _headers_text(letter.headers), letter.body, letter.at_us)


def _headers_text(headers: dict[str, str]) -> str:
    """Return headers as JSON.

    Half a character, which some clients make of stray bytes, becomes `?`: a letter that could not be stored would come back for ever.
    """
    try:
        return text(headers)
    except UnicodeEncodeError:
        return text(
            {name.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode() for name, value in headers.items()}
        )
