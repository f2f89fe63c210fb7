"""Check what is to go out.

No row of an outlet is skipped, removed before it is published, or sent for a wait that is over.
"""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.store.invariants.evidence import Evidence
from nats_taskflow.text import counted

_LAST = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = ?1), 0)"
_ABOVE = {"events": "SELECT count(*) FROM flow_events WHERE n > ?1", "dead_letters": "SELECT count(*) FROM dead_letters WHERE n > ?1"}
_TABLES = {"events": "flow_events", "dead_letters": "dead_letters"}


def unpublished(evidence: Evidence) -> dict[str, int]:
    """Count the rows of each outlet that are not known to be published."""
    marks = dict(evidence.rows("SELECT outlet, n FROM published").fetchall())
    return {outlet: evidence.value(sql, marks.get(outlet, 0)) for outlet, sql in _ABOVE.items()}


def requests_belong_to_their_wait(evidence: Evidence) -> Iterator[str]:
    """I-20: a request to a delegate goes out for a wait that is open, in one row.

    Once its wait is over it is of no use to anybody.
    """
    query = """SELECT o.n, o.subject, f.id, o.wait_id FROM outgoing AS o CROSS JOIN flows AS f
      WHERE o.kind = 'request' AND f.n = o.flow AND f.wait_id IS NOT o.wait_id AND f.set_aside IS NULL"""
    for n, subject, flow_id, wait_id in evidence.rows(query):
        yield f"request {n} to {subject} is still to be sent, though wait {wait_id} of {flow_id} is over"


def everything_gets_out(evidence: Evidence) -> Iterator[str]:
    """I-23: no row is passed over.

    Once nothing is in flight, everything committed is published and the mark says so.
    """
    waiting = unpublished(evidence)
    for outlet, table in _TABLES.items():
        mark = evidence.value("SELECT n FROM published WHERE outlet = ?1", outlet)
        last = evidence.value(_LAST, table)
        if mark is None or mark > last:
            yield f"{outlet} are said to be published up to row {mark}, there have been {last}: the next ones would be skipped"
        elif evidence.settled and waiting[outlet]:
            yield f"{outlet} are published up to row {mark} of {last}, and nothing is on its way"


def nothing_unpublished_is_removed(evidence: Evidence) -> Iterator[str]:
    """I-24: rows that are not published yet are all there."""
    waiting = unpublished(evidence)
    for outlet, table in _TABLES.items():
        mark = evidence.value("SELECT n FROM published WHERE outlet = ?1", outlet) or 0
        gone = evidence.value(_LAST, table) - mark - waiting[outlet]
        if gone > 0:
            yield f"{counted(gone, 'row')} of {outlet} above {mark} gone, and not published before"
