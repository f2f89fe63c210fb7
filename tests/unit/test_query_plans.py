"""What operators ask costs what it finds, not what there is: SQLite's own plan of every statement (`EXPLAIN QUERY PLAN`)."""

from __future__ import annotations

import re

import pytest

from worker.store.queries import statements
from worker.store.sqlite import SqliteFlowStore

STATEMENTS = {f"{file}.{name}": text for file in ("overview", "reads") for name, text in statements(file).items()}

SCANS = {
    "overview.letter_groups": "counts every letter, in the index that has all it needs",
    "overview.ids_by_suffix": "looks at the newest ids only, in the index of ids",
    "overview.held": "walks the numbers in their order",
    "overview.count_outgoing": "counts what is not sent yet",
    "overview.meta": "has a handful of rows",
    "overview.last_letter": "looks at the last row",
    "overview.last_event": "looks at the last row",
    "overview.waits_of": "looks at the last journal entry, and at one stretch of the waits",
    "overview.count_set_aside": "has flows that are set aside, and no others",
    "overview.oldest_parked": "looks at the first entry",
    "reads.counts": "has a row for each counter",
    "reads.next_due": "looks at the first entry",
    "reads.next_outgoing": "looks at the first entry",
    "reads.ping": "reads nothing",
}
"""Statements that may scan, and why that is bounded."""

_ITSELF = re.compile(r"SCAN (?:want|look|\(subquery|\d+ CONSTANT|CONSTANT)")


@pytest.mark.parametrize("name", sorted(STATEMENTS))
async def test_no_question_reads_a_whole_table(name: str) -> None:
    store = await SqliteFlowStore.open(":memory:")
    try:
        numbers = {int(number) for number in re.findall(r"\?(\d+)", STATEMENTS[name])}
        rows = await store._read(f"EXPLAIN QUERY PLAN {STATEMENTS[name]}", [None] * max(numbers, default=0))
    finally:
        await store.close()
    plan = [row[3] for row in rows]
    scans = [step for step in plan if step.startswith("SCAN") and not _ITSELF.match(step)]
    if name not in SCANS:
        assert scans == [], f"{name}: {plan}"
    assert not [step for step in scans if step in ("SCAN flows", "SCAN f")], f"{name} reads all flows: {plan}"


def test_the_statements_that_may_scan_are_there() -> None:
    assert SCANS.keys() <= STATEMENTS.keys()
