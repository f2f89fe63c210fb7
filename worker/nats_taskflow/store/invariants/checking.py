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
"""Hears what is being looked at: an invariant's name, or `flows` with how many are done."""


class Violation(msgspec.Struct, frozen=True):
    """What does not hold, and where."""

    number: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.number}: {self.sentence}"


def violations(
    evidence: Evidence, *, invariants: tuple[Invariant, ...] = INVARIANTS, quick: bool = False, progress: Progress | None = None
) -> Iterator[Violation]:
    """Give every violation there is, as they are found; none is good. What there is no evidence for is not looked at."""
    told = progress or (lambda _name, _count: None)
    for invariant in invariants:
        told(invariant.name, 0)
        for check in invariant.checks:
            yield from _readable(Violation(invariant.number, said) for said in _whole(check, evidence, quick=quick))
    by_flow = [
        (invariant.number, check)
        for invariant in invariants
        for check in invariant.checks
        if isinstance(check, CheckOfFlow | CheckOfEachStream)
    ]
    yield from _readable(_walk(by_flow, evidence, told))


def _walk(by_flow: list[tuple[str, CheckOfFlow | CheckOfEachStream]], evidence: Evidence, told: Progress) -> Iterator[Violation]:
    """Look at one flow after the other, each with every check that is about flows."""
    for number, life in enumerate(read_histories(evidence) if by_flow else (), start=1):
        told("flows", number)
        for name, check in by_flow:
            for sentence in _of_one(check, life, evidence):
                yield Violation(name, sentence)


def _readable(found: Iterator[Violation]) -> Iterator[Violation]:
    """Give what is found; pages that cannot be read are a violation themselves, and do not keep others from being looked at."""
    try:
        yield from found
    except sqlite3.DatabaseError as bad:
        yield Violation("I-12", f"the file cannot be read everywhere: {bad}")


def looked_at(evidence: Evidence, invariants: tuple[Invariant, ...] = INVARIANTS) -> list[str]:
    """Name the invariants for which there is evidence."""
    return [one.number for one in invariants if any(_has_evidence(check, one.number, evidence) for check in one.checks)]


def _has_evidence(check: object, number: str, evidence: Evidence) -> bool:
    """Tell whether a check has anything to look at."""
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
    """Run a check over everything at once, if it is one."""
    match check:
        case CheckOfDatabase(look=look, slow=slow) if not (slow and quick):
            yield from look(evidence)
        case CheckOfStream(look=listen, letters=letters):
            ledger = evidence.letters if letters else evidence.events
            yield from listen(evidence, ledger) if ledger is not None else ()
        case _:
            pass


def _of_one(check: CheckOfFlow | CheckOfEachStream, life: FlowHistory, evidence: Evidence) -> Iterator[str]:
    """Run a check over one flow."""
    if isinstance(check, CheckOfFlow):
        yield from check.look(life)
    elif evidence.events is not None:
        yield from check.look(life, evidence, evidence.events)
