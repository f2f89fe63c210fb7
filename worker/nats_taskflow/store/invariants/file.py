"""Check the file itself: SQLite's own checks, and whose it says it is."""

from __future__ import annotations

from collections.abc import Iterator

from nats_taskflow.store.invariants.evidence import Evidence
from nats_taskflow.store.sqlite.opening import APPLICATION_ID
from nats_taskflow.store.sqlite.statements import migrations


def pages_are_whole(evidence: Evidence) -> Iterator[str]:
    """I-12: `integrity_check` finds nothing."""
    lines = [str(row[0]) for row in evidence.rows("PRAGMA integrity_check")]
    if lines != ["ok"]:
        yield from (f"integrity_check says {line}" for line in lines)


def references_hold(evidence: Evidence) -> Iterator[str]:
    """I-12: no row belongs to a flow that is not there."""
    for table, row, parent, _ in evidence.rows("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} belongs to no row of {parent}"


def is_ours(evidence: Evidence) -> Iterator[str]:
    """I-12: the file says whose it is, and which schema it has."""
    for name, expected in (("application_id", APPLICATION_ID), ("user_version", len(migrations()))):
        value = evidence.value(f"PRAGMA {name}")
        if value != expected:
            yield f"{name} says {value}, not {expected}"
