"""Turn rows into what operators are shown.

A read answers with the very struct that goes over the wire.
"""

from __future__ import annotations

from base64 import b64encode

import msgspec

from nats_taskflow.store.records import DeadLetter
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.rows import Row
from nats_taskflow.units import Micros, rfc3339
from nats_taskflow.wire.admin_answers import InterventionShown, SetAsideFlow, WaiterShown
from nats_taskflow.wire.admin_letters import LetterShown


def set_aside(row: Row) -> SetAsideFlow:
    """Return the labels of a flow that cannot be read, damaged ones too."""
    controller, owner, step, why = (rows.legible(row[at]) for at in (2, 3, 4, 6))
    return SetAsideFlow(flow_id=row[1], controller_id=controller, owner_session_key=owner, current_step=step, status=row[5], why=why)


def waiter(row: Row) -> WaiterShown:
    """Return an open wait and whose it is."""
    return WaiterShown(
        flow_id=row[0],
        controller_id=row[1],
        owner_session_key=row[2],
        current_step=row[3],
        leaf=row[4],
        topic=row[5],
        correlation_id=row[6],
        mode=row[7],
        since=_time(row[8]),
        until=_time(row[9]),
    )


def letter(row: Row) -> LetterShown:
    """Return a dead letter as a list has it: without headers and body."""
    return LetterShown(
        number=row[0],
        reason=row[1],
        message=row[2],
        subject=row[3],
        stream=row[4],
        seq=row[5],
        at=rfc3339(row[8]),
        replays=row[9],
        replayed_at=_time(row[10]),
        replayed_by=row[11],
        bytes=row[12],
    )


def whole_letter(row: Row) -> LetterShown:
    """Return a dead letter with its headers and body."""
    stored = stored_letter(row)
    try:
        body = {"text": stored.body.decode()}
    except UnicodeDecodeError:
        body = {"base64": b64encode(stored.body).decode()}
    return msgspec.structs.replace(letter(row), headers=stored.headers, **body)


def stored_letter(row: Row) -> DeadLetter:
    """Return a dead letter as it came."""
    return msgspec.structs.replace(rows.dead_letter(row[:9]), replays=row[9])


def intervention(row: Row) -> InterventionShown:
    """Return what an operator did."""
    return InterventionShown(at=rfc3339(row[1]), actor=row[2], verb=row[3], about=row[4], reason=row[5])


def _time(at: Micros | None) -> str | None:
    return None if at is None else rfc3339(at)
