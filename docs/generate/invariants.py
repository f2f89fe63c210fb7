"""Describe every invariant, from the table that `db check` and the tests go by: docs/invariants.md."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generate.markdown import BY_HAND, cell, page_of, table
from nats_taskflow.store.invariants import INVARIANTS
from nats_taskflow.store.invariants.table import CLIENTS, CheckOfDatabase, CheckOfEachStream, CheckOfFlow, CheckOfStream, Invariant

_HEAD = f"""# Invariants

{BY_HAND}

What always holds. `taskflow db check` checks it ([Checking](checking.md)), and tests and fault runs check the same table
(`worker/nats_taskflow/store/invariants/table.py`): over the database, over the streams (with `--events`), and over what clients know was acknowledged (in tests and
fault runs only). What no database can show is shown by tests.
"""
_OVER = {
    CheckOfDatabase: "database",
    CheckOfFlow: "database",
    CheckOfStream: "streams",
    CheckOfEachStream: "streams",
}


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines."""
    yield _HEAD
    yield from table(
        ("", "name", "what always holds", "over"),
        ((invariant.number, invariant.name, cell(invariant.promise), scope_of(invariant)) for invariant in INVARIANTS),
    )
    yield "I-4 (which needs to know what the worker ignores) and what only clients can know (I-6, I-10, and parts of I-1, I-2 and I-11) are checked in"
    yield from (
        "tests and fault runs, not by the command.",
        "",
        "## What to do",
        "",
        "If one does not hold, the command says this:",
        "",
    )
    for advice in dict.fromkeys(invariant.advice for invariant in INVARIANTS if invariant.checks):
        yield f"- {', '.join(invariant.number for invariant in INVARIANTS if invariant.checks and invariant.advice == advice)}: {advice}."


def scope_of(invariant: Invariant) -> str:
    """Say what an invariant is checked over."""
    named = ["streams" if check.look.__name__ == "everything_is_taken_in" else _OVER[type(check)] for check in invariant.checks]
    clients = ["clients"] if CLIENTS in invariant.elsewhere else []
    return ", ".join(dict.fromkeys(named + clients)) or "tests"
