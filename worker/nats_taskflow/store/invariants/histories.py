"""Walk through all flows, each with its journal, waits and outcomes.

Only one of them is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nats_taskflow.flow.model import Flow, Waiter
from nats_taskflow.store.invariants.evidence import Entry, Evidence, FlowHistory, StoredOutcome
from nats_taskflow.store.sqlite import rows

_FLOWS = """SELECT n, id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested,
  CAST(state_json AS BLOB), CAST(wait_json AS BLOB), wait_id, parked_us, CAST(progress_json AS BLOB), revision, seq, created_us,
  updated_us, parent_id, hops, set_aside, due_us FROM flows ORDER BY n"""
_JOURNAL = """SELECT flow, n, seq, revision, kind, CAST(payload_json AS BLOB), at_us, actor, status, previous_status, current_step, cause,
  correlation_id, trace FROM flow_events ORDER BY flow, seq"""
_WAITERS = "SELECT flow, wait_id, leaf, topic, correlation_id, mode, open FROM waiters ORDER BY flow, wait_id, leaf"
# Sorted by SQLite, in a file of its own where it is large: the inbox does not know flows.
_OUTCOMES = """SELECT f.n, i.scope, i.key, json_extract(CAST(i.result AS TEXT), '$.flow.revision')
  FROM inbox AS i CROSS JOIN flows AS f
  WHERE i.outcome = 'applied' AND i.scope LIKE 'cmd:%' AND json_valid(CAST(i.result AS TEXT))
    AND f.id = json_extract(CAST(i.result AS TEXT), '$.flow.id')
  ORDER BY f.n"""


class _RowsByFlow:
    """Rows in the order of flows, read in step with them.

    Rows of no flow are passed over: I-12 reports them.
    """

    def __init__(self, rows_in_order: Iterator[Any]) -> None:
        self._rows = rows_in_order
        self._next = next(rows_in_order, None)

    def of(self, n: int) -> Iterator[Any]:
        """Yield the rows of flow `n`. Call it in ascending order of flows."""
        while self._next is not None and self._next[0] <= n:
            row, self._next = self._next, next(self._rows, None)
            if row[0] == n:
                yield row


def read_histories(evidence: Evidence) -> Iterator[FlowHistory]:
    """Yield every flow with all that belongs to it, in the order they were started."""
    journal, waiters, outcomes = (_RowsByFlow(iter(evidence.rows(sql))) for sql in (_JOURNAL, _WAITERS, _OUTCOMES))
    for row in evidence.rows(_FLOWS):
        n, flow_id = row[0], row[1]
        flow, flaw = _flow(row)
        yield FlowHistory(
            id=flow_id,
            owner=row[4],
            status=row[7],
            revision=row[14],
            seq=row[15],
            due_us=row[21],
            set_aside=row[20] is not None,
            flow=flow,
            flaw=flaw,
            entries=[_entry(flow_id, entry) for entry in journal.of(n)],
            waiters=[_waiter(flow_id, waiter) for waiter in waiters.of(n)],
            outcomes=[StoredOutcome(*outcome[1:]) for outcome in outcomes.of(n) if outcome[3] is not None],
        )


def count(evidence: Evidence) -> int:
    """Return how many flows there are."""
    return int(evidence.value("SELECT count(*) FROM flows"))


def _flow(row: Any) -> tuple[Flow | None, str]:
    """Return the flow of a row, or why it cannot be read."""
    try:
        return rows.flow(row[1:21]), ""
    except rows.UnreadableRow as bad:
        return None, str(bad)


def _entry(flow_id: str, row: Any) -> Entry:
    """Return a journal entry."""
    try:
        event = rows.event((flow_id, *row[2:]))
    except rows.UnreadableRow as bad:
        return Entry(row[1], row[2], None, str(bad))
    payload: Any = event.payload
    if not isinstance(payload, dict):
        return Entry(row[1], row[2], None, "its payload is no object")
    return Entry(row[1], row[2], event)


def _waiter(flow_id: str, row: Any) -> tuple[Waiter, bool]:
    _, wait_id, leaf, topic, correlation_id, mode, is_open = row
    return Waiter(flow_id=flow_id, wait_id=wait_id, leaf=leaf, topic=topic, correlation_id=correlation_id, mode=mode), bool(is_open)
