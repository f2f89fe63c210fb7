"""Show rows to operators, cut answers into pages, and read what a request says about time and place."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow.conditions import due_times, from_value
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, HeldReply
from nats_taskflow.store.admin_port import DeadLetterGroup, KeptDeadLetter
from nats_taskflow.store.records import Page, Row
from nats_taskflow.units import Micros, parse_duration, rfc3339, to_micros
from nats_taskflow.wire import admin_answers, admin_requests
from nats_taskflow.wire.cursors import read_cursor, write_cursor
from nats_taskflow.wire.subjects import Subjects

_ENCODE = msgspec.json.Encoder().encode
_DATE = re.compile(r"\A\d{4}-")
Item = TypeVar("Item")


def moment_before(older_than: str | None, now: Micros) -> Micros | None:
    """Return the moment that a duration lies back from `now`. Raises `InvalidRequest` for text that is none."""
    return None if older_than is None else now - _duration("older_than", older_than)


def moment_after(due_within: str | None, now: Micros) -> Micros | None:
    """Return the moment that a duration lies ahead of `now`. Raises `InvalidRequest` for text that is none."""
    return None if due_within is None else now + _duration("due_within", due_within)


def moment_of(name: str, text: str | None, now: Micros) -> Micros | None:
    """Return the moment that is meant by a duration back from `now`, or by an RFC 3339 time. Raises `InvalidRequest` for other text."""
    if text is None:
        return None
    try:
        return to_micros(datetime.fromisoformat(text)) if _DATE.match(text) else now - parse_duration(text)
    except ValueError as bad:
        said = f"{name}: {text!r} is no time: write a duration (1h 30m), or a time with its offset (2026-11-22T14:00:00Z)"
        raise InvalidRequest(said, path=f"/{name}") from bad


def _duration(name: str, text: str) -> Micros:
    """Return a duration. Raises `InvalidRequest` for text that is none."""
    try:
        return parse_duration(text)
    except ValueError as bad:
        raise InvalidRequest(f"{name}: {bad}", path=f"/{name}") from bad


def show_letter(kept: KeptDeadLetter, *, whole: bool = False) -> admin_answers.LetterShown:
    """Return a dead letter as operators see it; `whole`: with headers and body."""
    letter = kept.letter
    contents: dict[str, Any] = {"headers": letter.headers, **body_shown(letter.body)} if whole else {}
    return admin_answers.LetterShown(
        number=letter.n,
        reason=letter.reason,
        message=letter.message,
        subject=letter.subject,
        stream=letter.stream,
        seq=letter.seq,
        at=rfc3339(letter.at_us),
        bytes=kept.size,
        replays=kept.replays,
        replayed_at=when(kept.replayed_us),
        replayed_by=kept.replayed_by,
        **contents,
    )


def place(cursor: str | None) -> tuple[int, int] | None:
    """Return the place among waiting flows that a cursor stands for. Raises `InvalidRequest` for any other cursor."""
    position = None if cursor is None else read_cursor(cursor)
    match position:
        case None:
            return None
        case [int(parked), int(number)] if all(-(2**63) <= part < 2**63 for part in (parked, number)):
            return parked, number
    raise InvalidRequest("cursor must be the next_cursor of the page before", path="/cursor")


def cursor_of(position: int | None) -> str | None:
    """Return the cursor of a position, if there is one."""
    return None if position is None else write_cursor(position)


def fitting(items: Sequence[Item], room: int) -> list[Item]:
    """Return the first items that fit into a page of `room` bytes; at least one."""
    weight = 0
    kept: list[Item] = []
    for item in items:
        weight += len(_ENCODE(item))
        if kept and weight > room:
            break
        kept.append(item)
    return kept


def cut(page: Page[Row], show: Callable[[Row], Item], room: int) -> tuple[list[Item], str | None]:
    """Return the first rows of a page as they are shown, as many as fit into `room` bytes, and the cursor of what follows."""
    kept = fitting([show(row) for row in page.items], room)
    return kept, cursor_of(page.next if len(kept) == len(page.rows) else page.rows[len(kept) - 1][0])


def when(at: Micros | None) -> str | None:
    """Return a time as clients see it."""
    return rfc3339(at) if at is not None else None


def show_wait(flow: Flow) -> admin_answers.WaitAcross:
    """Return what a waiting flow waits for."""
    condition = from_value(flow.wait_json)
    due = due_times(condition, flow.progress or {}) if condition is not None else []
    return admin_answers.WaitAcross(
        flow_id=flow.id,
        controller_id=flow.controller_id,
        owner_session_key=flow.owner_session_key,
        current_step=flow.current_step,
        revision=flow.revision,
        cancel_requested=flow.cancel_requested,
        wait=flow.wait_json,
        progress=flow.progress,
        since=when(flow.parked_us),
        until=rfc3339(due[0][0]) if due else None,
    )


def show_held(number: int, held: HeldReply) -> admin_answers.HeldShown:
    """Return a held reply as operators see it."""
    return admin_answers.HeldShown(
        number=number,
        topic=held.topic,
        correlation_id=held.correlation_id,
        event_id=held.event_id,
        flow_id=held.flow_id,
        tenant=held.tenant,
        arrived_at=rfc3339(held.arrived_us),
        expires_at=rfc3339(held.expires_us),
        payload=None if held.payload is msgspec.UNSET else held.payload,
    )


def body_shown(body: bytes) -> dict[str, str]:
    """Return a body as text where it is UTF-8, else as base64."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}


def by_status(counts: Iterable[tuple[str, int]], prefix: str, names: Sequence[str] = ()) -> dict[str, int]:
    """Pick the counters of one kind; those that are named are there even at 0."""
    found = {name.removeprefix(prefix): value for name, value in counts if name.startswith(prefix)}
    return {name: found.get(name, 0) for name in names} | found


STATUSES = tuple(status.value for status in FlowStatus)


def show_groups(groups: Sequence[DeadLetterGroup], asked: admin_requests.LettersList, subjects: Subjects) -> list[admin_answers.GroupShown]:
    """Count by reason and subject, a built-in reply topic's correlation ids together; the largest group first."""
    found: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        reply = subjects.parse_reply(group.subject)
        subject = f"{subjects.reply_topic(reply[0])}.*" if reply is not None else group.subject
        if asked.letter_reason not in (None, group.reason) or asked.subject not in (None, group.subject):
            continue
        known = found.setdefault((group.reason, subject), [0, 0, group.first_us, group.last_us])
        known[:] = [known[0] + group.count, known[1] + group.replayed, min(known[2], group.first_us), max(known[3], group.last_us)]
    return [
        admin_answers.GroupShown(reason=r, subject=s, count=c, replayed=again, first_at=rfc3339(first), last_at=rfc3339(last))
        for (r, s), (c, again, first, last) in sorted(found.items(), key=lambda item: -item[1][0])
    ]
