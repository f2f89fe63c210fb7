"""Turn rows into structs and back: the one place that knows the columns' order.

JSON columns are selected as BLOBs: the decoder reads bytes anyway, and bytes that are no text are then damage of one row, where SQLite
would refuse to hand out the whole result (SEMANTICS R13).
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
_SPELLED = {member: member.value for kind in (FlowStatus, EventKind) for member in kind}
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class UnreadableRow(ValueError):
    """A stored row does not say what it should; the message says where."""


def legible(stored: bytes) -> str:
    """Return stored text even where it is damaged: a label that is no text must not keep other rows from being read."""
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
        loaded = Flow(
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
        if loaded.wait_json is not None:
            # A wait that only fails when it is due would hide until then.
            _ = loaded.condition
        loaded.__dict__["state_stored"] = row[8]
    except (ValueError, RecursionError) as bad:
        message = f"flow {row[0]}: {bad}"
        raise UnreadableRow(message) from bad
    return loaded


def flows(numbered: Sequence[Row]) -> list[tuple[int, Flow]]:
    """Return the flows of the rows that can be read, each with its number, which its row begins with."""
    readable = []
    for row in numbered:
        try:
            readable.append((row[0], flow(row[1:])))
        except UnreadableRow:
            continue
    return readable


def flow_insert(n: int, it: Flow, due_us: int | None, key: str | None) -> tuple[Any, ...]:
    """Return the values of `insert_flow`."""
    born = (n, it.id, it.controller_id, it.goal, it.owner_session_key, it.requester_origin)
    return (*born, *_present(it), it.revision, it.seq, it.created_us, it.updated_us, due_us, key, it.parent_flow_id, it.hops)


def flow_update(n: int, it: Flow, was: Flow, due_us: int | None) -> tuple[Any, ...]:
    """Return the values of `update_flow`; it takes effect only on the row that the batch saw."""
    return (*_present(it), it.revision, it.seq, it.updated_us, due_us, n, was.revision, was.seq)


def _present(it: Flow) -> tuple[Any, ...]:
    """Return what changes in a flow's life, in the order both statements have it."""
    waiting = (maybe(it.wait_json), it.wait_id, it.parked_us, maybe(it.progress))
    return (it.current_step, _SPELLED[it.status], int(it.cancel_requested), it.state_stored.decode(), *waiting)


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


def event_insert(n: int, flow: int, it: FlowEvent, epoch: int) -> tuple[Any, ...]:
    """Return the values of `insert_event`."""
    shown = (_SPELLED[it.status], _SPELLED[it.previous_status] if it.previous_status else None, it.current_step)
    by = (it.at_us, it.actor, it.cause)
    return (n, flow, it.seq, it.revision, _SPELLED[it.kind], text(it.payload), *by, *shown, it.correlation_id, it.trace, epoch)


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


def step_upsert(n: int, it: FlowStep) -> tuple[Any, ...]:
    """Return the values of `upsert_step`."""
    run = (it.runtime, it.child_session_key, it.run_id, it.task, it.status.value, text(it.result_json))
    return (it.id, n, *run, it.created_us, it.updated_us)


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
    """Return the held reply of a row that was selected without its payload, which may weigh much and is not looked at."""
    times = {"arrived_us": row[3], "expires_us": row[4]}
    return HeldReply(topic=row[0], correlation_id=row[1], event_id=row[2], payload=msgspec.UNSET, key=row[5], tenant=row[6], **times)


def held_insert(it: HeldReply) -> tuple[Any, ...]:
    """Return the values of `insert_held`; a reply without payload is kept as empty text."""
    payload = "" if it.payload is msgspec.UNSET else text(it.payload)
    return (it.topic, it.correlation_id, it.event_id, payload, it.arrived_us, it.expires_us, it.key, it.flow_id, it.trace, it.tenant)


def outgoing(row: Row) -> DelegateMessage:
    """Return the message to a delegate of a row."""
    headers = _decode(row[4])
    return DelegateMessage(flow_id=row[0], wait_id=row[1], kind=row[2], subject=row[3], headers=headers, body=row[5], reply=row[6])


def outgoing_insert(n: int, it: DelegateMessage, now: int) -> tuple[Any, ...]:
    """Return the values of `insert_outgoing`."""
    return (n, it.wait_id, it.kind, it.subject, it.reply, text(it.headers), it.body, now)


def inbox(row: Row) -> InboxRow:
    """Return the message of a row."""
    return InboxRow(scope=row[0], key=row[1], digest=row[2], outcome=row[3], result=row[4], source=row[5], source_seq=row[6], at_us=row[7])


def inbox_insert(it: InboxRow) -> tuple[Any, ...]:
    """Return the values of `insert_inbox`."""
    return (it.scope, it.key, it.digest, it.outcome, it.result, it.source, it.source_seq, it.at_us)


def dead_letter(row: Row) -> DeadLetter:
    """Return the dead letter of a row; headers that cannot be read are left out, the body is what matters."""
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


def dead_letter_insert(it: DeadLetter) -> tuple[Any, ...]:
    """Return the values of `insert_dead_letter`."""
    return (it.reason, it.message, it.subject, it.stream, it.seq, _headers_text(it.headers), it.body, it.at_us)


def _headers_text(headers: dict[str, str]) -> str:
    """Return headers as JSON. Half a character that a client made of stray bytes becomes `?`: a letter that could not be stored would
    come back for ever.
    """
    try:
        return text(headers)
    except UnicodeEncodeError:
        return text(
            {name.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode() for name, value in headers.items()}
        )
