"""What a statement costs grows with what it finds, not with what there is: SQLite's own plan of every one (`EXPLAIN QUERY PLAN`)."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.testing.database import fresh

STATEMENTS = {
    f"{file}.{name}": text for file in ("load", "admin_reads", "reads", "save", "upkeep") for name, text in statements(file).items()
}

SCANS = {
    "load.held_most": {"SCAN held_tenants USING COVERING INDEX held_tenants_by_size"},  # ends after its first row
    "admin_reads.count_outgoing": {"SCAN outgoing USING INDEX outgoing_by_time"},  # counts what is not sent yet
    "admin_reads.count_letters": {"SCAN dead_letters USING COVERING INDEX dead_letters_by_reason"},  # counts every letter
    "admin_reads.count_set_aside": {"SCAN flows USING INDEX flows_set_aside"},  # a partial index: those set aside, and no others
    "admin_reads.meta": {"SCAN meta"},  # a handful of rows
    "admin_reads.most_used": {"SCAN usage"},  # a row for each agent
    "reads.counts": {"SCAN counters"},  # a row for each counter
    "reads.due": {"SCAN e", "SCAN t"},  # ends of flows to follow up, twenty at a time; and what is due, a slice of it
    "reads.next_outgoing": {"SCAN outgoing USING INDEX outgoing_by_time"},  # ends after its first row
    "reads.outgoing_due": {"SCAN t"},  # what is due, as much of it as is sent at once
    "upkeep.last_numbers": {"SCAN sqlite_sequence"},  # a row for each numbered table
}
"""Every scan of a table or an index that there is, and why it is bounded."""

_NO_TABLE = ("VIRTUAL TABLE", "CONSTANT ROW", "(subquery")  # what the statement was given, or has made itself


def explained(database: sqlite3.Connection, how: str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a plan; the parameters do not matter to it."""
    count = max([int(number) for number in re.findall(r"\?(\d+)", sql)], default=sql.count("?"))
    return database.execute(f"{how} {sql}", [None] * count).fetchall()


@pytest.fixture
async def empty() -> AsyncIterator[sqlite3.Connection]:
    """A database without rows."""
    with contextlib.closing(await fresh()) as database:
        yield database


async def test_no_statement_reads_a_whole_table_but_those_that_are_named(empty: sqlite3.Connection) -> None:
    plans = {name: [step[3] for step in explained(empty, "EXPLAIN QUERY PLAN", sql)] for name, sql in STATEMENTS.items()}
    scans = {
        name: {step for step in plan if step.startswith("SCAN") and not any(harmless in step for harmless in _NO_TABLE)}
        for name, plan in plans.items()
    }
    assert {name: steps for name, steps in scans.items() if steps} == SCANS


PAGES = (
    "admin_reads.find_flows",
    "admin_reads.held",
    "admin_reads.interventions",
    "admin_reads.letters",
    "admin_reads.set_aside",
    "reads.list_",
)


async def test_no_page_sorts_the_rows_that_it_may_stop_before(empty: sqlite3.Connection) -> None:
    """What is sorted has to be loaded whole; numbers that name the rows may be."""
    pages = [name for name in STATEMENTS if name.startswith(PAGES)]
    assert len(pages) >= 15, pages
    for name in pages:
        plan = explained(empty, "EXPLAIN QUERY PLAN", STATEMENTS[name])
        assert not [step for _, parent, _, step in plan if parent == 0 and "TEMP B-TREE" in step], (name, plan)


async def test_no_row_that_is_written_makes_a_table_of_its_own(empty: sqlite3.Connection) -> None:
    """As a CHECK of the form `x IN (…)` does: it was a third of what a write cost."""
    making = [
        name for name, sql in statements("save").items() if any(step[1] == "OpenEphemeral" for step in explained(empty, "EXPLAIN", sql))
    ]
    assert making == []


async def test_a_tick_asks_the_index_of_due_times(empty: sqlite3.Connection) -> None:
    for name in ("due", "next_due"):
        plan = [step[3] for step in explained(empty, "EXPLAIN QUERY PLAN", statements("reads")[name])]
        looked = [step for step in plan if re.match(r"(SCAN|SEARCH) (flows|f) ", step) and "INTEGER PRIMARY KEY" not in step]
        assert looked, plan
        assert all(re.search(r"USING (COVERING )?INDEX (flows_by_due|flows_leaving) ", step) for step in looked), plan
