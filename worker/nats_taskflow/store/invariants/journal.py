"""Check each flow's journal: contiguous, legal, written once, folding to the row."""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.flow.fold import fold_journal
from nats_taskflow.flow.lifecycle import NEXT, STATUS_AFTER, TERMINAL, EventKind, FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory

_SHOWN = 5
_AFTER_REQUEST = {EventKind.CANCELLED, EventKind.STEP_OBSERVED}


def is_contiguous(history: FlowHistory) -> Iterator[str]:
    """I-7: `seq` 1, 2, 3, …; revisions 0 … n; the last of both equal to the row's."""
    journal, places = f"the journal of {history.id}", [entry.seq for entry in history.entries]
    yield from _deviation(journal, "places", places, list(range(1, history.seq + 1)))
    if len(history.events) == len(history.entries):
        revisions = list(dict.fromkeys(_revisions(history)))
        yield from _deviation(journal, "revisions", revisions, list(range(history.revision + 1)))


def gives_the_row(history: FlowHistory) -> Iterator[str]:
    """I-8: folding a flow's journal gives exactly its row."""
    flaws = [f"the row of {history.id} cannot be read: {history.flaw}"] if history.flow is None else []
    flaws += [f"entry {entry.seq} of {history.id} cannot be read: {entry.flaw}" for entry in history.entries if entry.event is None]
    yield from flaws
    if flaws:
        return
    try:
        fold = fold_journal(history.events)
    except (KeyError, TypeError, AttributeError, ValueError) as bad:
        yield f"the journal of {history.id} cannot be folded: {bad!r}"
        return
    if fold != history.flow:
        yield f"folding the journal of {history.id} gives {_differences(fold, history.flow)}"


def takes_legal_edges(history: FlowHistory) -> Iterator[str]:
    """I-9: a flow takes only edges of the table.

    After the end only runs are observed; once cancellation is requested only `cancelled` follows.
    """
    status: FlowStatus | None = None
    is_cancel_requested = False
    for event in history.events:
        after = STATUS_AFTER.get(event.kind, status)
        if status in TERMINAL and event.kind is not EventKind.STEP_OBSERVED:
            yield f"{history.id} had ended as {status}, and then {event.kind} came"
        elif status is not None and after is not None and after is not status and after not in NEXT[status]:
            yield f"{history.id} went from {status} to {after}"
        if is_cancel_requested and event.kind not in _AFTER_REQUEST:
            yield f"{history.id} did {event.kind} though its cancellation was requested"
        if len(history.events) == len(history.entries) and (event.status, event.previous_status) != (after, status):
            yield f"entry {event.seq} of {history.id} says {event.previous_status} → {event.status}, it was {status} → {after}"
        is_cancel_requested = is_cancel_requested or event.kind is EventKind.CANCEL_REQUESTED
        status = after


def revisions_are_written_once(history: FlowHistory) -> Iterator[str]:
    """I-11: no two changes of a flow have the same revision."""
    seen: set[int] = set()
    for revision in _revisions(history):
        if revision in seen:
            yield f"revision {revision} of {history.id} was written more than once"
        seen.add(revision)


def epochs_never_go_back(evidence: Evidence) -> Iterator[str]:
    """I-25: each entry was written by the worker of the one before it, or a later one.

    No entry was written by a worker yet to come.
    """
    back = (
        """SELECT n, epoch, before FROM (SELECT n, epoch, lag(epoch) OVER (ORDER BY n) AS before FROM flow_events) WHERE epoch < before"""
    )
    for n, epoch, before in evidence.rows(back):
        yield f"journal row {n} was written by worker {epoch} after worker {before} had taken over"
    newest = evidence.value("SELECT value FROM meta WHERE name = 'epoch'")
    last = evidence.value("SELECT max(epoch) FROM flow_events") or 0
    if newest is None or last > newest:
        yield f"a journal row says worker {last}, the database has been opened by {newest} so far"


def _revisions(history: FlowHistory) -> list[int]:
    # Observed runs bump no revision.
    return [event.revision for event in history.events if event.kind is not EventKind.STEP_OBSERVED]


def _deviation(journal: str, what: str, actual: list[int], expected: list[int]) -> Iterator[str]:
    """Yield in which numbers two lists differ, if they do."""
    if actual == expected:
        return
    lacks, has = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    parts = [f"lacks the {what} {_some(lacks)}" if lacks else "", f"has the {what} {_some(has)} more than its row" if has else ""]
    yield f"{journal} {' and '.join(part for part in parts if part) or f'has its {what} out of order'}"


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown if len(numbers) <= _SHOWN else f"{shown} … ({len(numbers)} of them)"


def _differences(fold: Flow | None, row: Flow | None) -> str:
    """List the fields in which the two differ, with both values cut to be readable."""
    if fold is None or row is None:
        return f"{fold}, the row is {row}"
    fields = [name for name in row.__struct_fields__ if getattr(fold, name) != getattr(row, name)]
    return "; ".join(f"{name} {_short(getattr(fold, name))}, the row has {_short(getattr(row, name))}" for name in fields)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"  # noqa: PLR2004  as much as people read
