"""Check each flow's journal: contiguous, legal, written once, and folding to exactly the row."""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.flow.fold import fold_journal
from nats_taskflow.flow.lifecycle import NEXT, STATUS_AFTER, TERMINAL, EventKind, FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory

_SHOWN = 5
_AFTER_REQUEST = {EventKind.CANCELLED, EventKind.STEP_OBSERVED}


def is_contiguous(life: FlowHistory) -> Iterator[str]:
    """I-7: `seq` 1, 2, 3, …; revisions 0 … n; the last of both equal to the row's."""
    yield from _deviation(f"the journal of {life.id}", "places", [entry.seq for entry in life.entries], list(range(1, life.seq + 1)))
    found = list(dict.fromkeys(_revisions(life)))
    if len(life.events) == len(life.entries):
        yield from _deviation(f"the journal of {life.id}", "revisions", found, list(range(life.revision + 1)))


def gives_the_row(life: FlowHistory) -> Iterator[str]:
    """I-8: folding a flow's journal gives exactly its row."""
    flaws = [f"the row of {life.id} cannot be read: {life.flaw}"] if life.flow is None else []
    flaws += [f"entry {entry.seq} of {life.id} cannot be read: {entry.flaw}" for entry in life.entries if entry.event is None]
    yield from flaws
    if flaws:
        return
    try:
        told = fold_journal(life.events)
    except (KeyError, TypeError, AttributeError, ValueError) as bad:
        yield f"the journal of {life.id} cannot be folded: {bad!r}"
        return
    if told != life.flow:
        yield f"folding the journal of {life.id} gives {_differences(told, life.flow)}"


def takes_legal_edges(life: FlowHistory) -> Iterator[str]:
    """I-9: only edges of the table; after the end only observed runs; once cancellation is requested only `cancelled` follows."""
    status: FlowStatus | None = None
    asked = False
    for event in life.events:
        after = STATUS_AFTER.get(event.kind, status)
        if status in TERMINAL and event.kind is not EventKind.STEP_OBSERVED:
            yield f"{life.id} had ended as {status}, and then {event.kind} came"
        elif status is not None and after is not None and after is not status and after not in NEXT[status]:
            yield f"{life.id} went from {status} to {after}"
        if asked and event.kind not in _AFTER_REQUEST:
            yield f"{life.id} did {event.kind} though its cancellation was requested"
        if len(life.events) == len(life.entries) and (event.status, event.previous_status) != (after, status):
            yield f"entry {event.seq} of {life.id} says {event.previous_status} → {event.status}, it was {status} → {after}"
        asked = asked or event.kind is EventKind.CANCEL_REQUESTED
        status = after


def revisions_are_written_once(life: FlowHistory) -> Iterator[str]:
    """I-11: no two changes of a flow have the same revision."""
    seen: set[int] = set()
    for revision in _revisions(life):
        if revision in seen:
            yield f"revision {revision} of {life.id} was written more than once"
        seen.add(revision)


def epochs_never_go_back(evidence: Evidence) -> Iterator[str]:
    """I-25: each entry was written by the same worker as the one before it or a later one, and none by one yet to come."""
    back = (
        """SELECT n, epoch, before FROM (SELECT n, epoch, lag(epoch) OVER (ORDER BY n) AS before FROM flow_events) WHERE epoch < before"""
    )
    for n, epoch, before in evidence.rows(back):
        yield f"journal row {n} was written by worker {epoch} after worker {before} had taken over"
    newest = evidence.value("SELECT value FROM meta WHERE name = 'epoch'")
    last = evidence.value("SELECT max(epoch) FROM flow_events") or 0
    if newest is None or last > newest:
        yield f"a journal row says worker {last}, the database has been opened by {newest} so far"


def _revisions(life: FlowHistory) -> list[int]:
    """List the revisions that the journal wrote; observed runs bump none."""
    return [event.revision for event in life.events if event.kind is not EventKind.STEP_OBSERVED]


def _deviation(whose: str, what: str, found: list[int], wanted: list[int]) -> Iterator[str]:
    """Say in which numbers two lists differ, if they do."""
    if found == wanted:
        return
    lacks, has = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    said = [f"lacks the {what} {_some(lacks)}" if lacks else "", f"has the {what} {_some(has)} more than its row" if has else ""]
    yield f"{whose} {' and '.join(part for part in said if part) or f'has its {what} out of order'}"


def _some(numbers: list[int]) -> str:
    """Write a few of many numbers."""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown if len(numbers) <= _SHOWN else f"{shown} … ({len(numbers)} of them)"


def _differences(told: Flow | None, row: Flow | None) -> str:
    """Say in which fields the two differ, with both values, cut to what can be read."""
    if told is None or row is None:
        return f"{told}, the row is {row}"
    fields = [name for name in row.__struct_fields__ if getattr(told, name) != getattr(row, name)]
    return "; ".join(f"{name} {_short(getattr(told, name))}, the row has {_short(getattr(row, name))}" for name in fields)


def _short(value: object) -> str:
    """Write a value in at most 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"  # noqa: PLR2004  what the docstring says
