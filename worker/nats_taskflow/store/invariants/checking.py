"""Run every check of the table over the evidence, in one walk through the flows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

import msgspec

from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory
from nats_taskflow.store.invariants.histories import read_histories
from nats_taskflow.store.invariants.table import (
    INVARIANTS,
    CheckOfDatabase,
    CheckOfEachStream,
    CheckOfFlow,
    CheckOfStream,
    Invariant,
)

Progress = Callable[[str, int], None]
"""Called with what is being checked: an invariant's name, or `flows` and how many are done."""


class Violation(msgspec.Struct, frozen=True):
    """What does not hold, and where."""

    number: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.number}: {self.sentence}"


def violations(
    evidence: Evidence, *, invariants: tuple[Invariant, ...] = INVARIANTS, quick: bool = False, progress: Progress | None = None
) -> Iterator[Violation]:
    """Yield every violation as it is found.

    Invariants for which there is no evidence are left out.
    """
    report = progress or (lambda _name, _count: None)
    for invariant in invariants:
        report(invariant.name, 0)
        for check in invariant.checks:
            yield from _readable(Violation(invariant.number, sentence) for sentence in _whole(check, evidence, quick=quick))
    by_flow = [
        (invariant.number, check)
        for invariant in invariants
        for check in invariant.checks
        if isinstance(check, CheckOfFlow | CheckOfEachStream)
    ]
    yield from _readable(_walk(by_flow, evidence, report))


def _walk(by_flow: list[tuple[str, CheckOfFlow | CheckOfEachStream]], evidence: Evidence, report: Progress) -> Iterator[Violation]:
    """Check one flow after the other, each with every check of flows."""
    for number, history in enumerate(read_histories(evidence) if by_flow else (), start=1):
        report("flows", number)
        for name, check in by_flow:
            for sentence in _of_one(check, history, evidence):
                yield Violation(name, sentence)


def _readable(violated: Iterator[Violation]) -> Iterator[Violation]:
    """Yield a check's violations.

    Where pages cannot be read, that is a violation itself. It stops no other check.
    """
    try:
        yield from violated
    except sqlite3.DatabaseError as bad:
        yield Violation("I-12", f"the file cannot be read everywhere: {bad}")


def looked_at(evidence: Evidence, invariants: tuple[Invariant, ...] = INVARIANTS) -> list[str]:
    """Name the invariants for which there is evidence."""
    return [
        invariant.number for invariant in invariants if any(_has_evidence(check, invariant.number, evidence) for check in invariant.checks)
    ]


def _has_evidence(check: object, number: str, evidence: Evidence) -> bool:
    """Return whether there is anything to check."""
    match check:
        case CheckOfDatabase():
            return number != "I-4" or evidence.taken is not None
        case CheckOfStream(letters=True):
            return evidence.letters is not None
        case CheckOfStream() | CheckOfEachStream():
            return evidence.events is not None
        case _:
            return True


def _whole(check: object, evidence: Evidence, *, quick: bool) -> Iterator[str]:
    """Run a check of the whole database or of a stream, if it is one."""
    match check:
        case CheckOfDatabase(look=look, slow=slow) if not (slow and quick):
            yield from look(evidence)
        case CheckOfStream(look=look, letters=letters):
            ledger = evidence.letters if letters else evidence.events
            yield from look(evidence, ledger) if ledger is not None else ()
        case _:
            pass


def _of_one(check: CheckOfFlow | CheckOfEachStream, history: FlowHistory, evidence: Evidence) -> Iterator[str]:
    """Run a check over one flow."""
    if isinstance(check, CheckOfFlow):
        yield from check.look(history)
    elif evidence.events is not None:
        yield from check.look(history, evidence, evidence.events)
