"""Sum up a check: what was checked, what does not hold, what is on its way."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from nats_taskflow.store.invariants.checking import Progress, Violation, looked_at, violations
from nats_taskflow.store.invariants.evidence import Evidence
from nats_taskflow.store.invariants.histories import count
from nats_taskflow.store.invariants.outbox import unpublished
from nats_taskflow.store.invariants.table import INVARIANTS
from nats_taskflow.units import rfc3339

KEPT = 100
"""How many sentences are kept for each invariant; the others are counted."""


class Violated(msgspec.Struct, frozen=True, kw_only=True):
    """An invariant that does not hold, and what to do.

    It has at most `KEPT` of its `count` violations.
    """

    number: str
    name: str
    count: int
    sentences: list[str]
    advice: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a check.

    `worker`: the process that runs on the database; `waiting`: rows of each outlet on their way out.
    """

    ok: bool
    path: str
    worker: int | None
    at: str
    flows: int
    waiting: dict[str, int]
    looked_at: list[str]
    seconds: float
    violations: list[Violated]


def gather(evidence: Evidence, *, path: str, worker: int | None, quick: bool = False, progress: Progress | None = None) -> Findings:
    """Check all invariants for which there is evidence."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    kept: dict[str, list[str]] = {}
    for violation in violations(evidence, quick=quick, progress=progress):
        counts[violation.number] += 1
        _keep(violation, kept)
    violated = [
        Violated(number=i.number, name=i.name, count=counts[i.number], sentences=kept[i.number], advice=i.advice)
        for i in INVARIANTS
        if counts[i.number]
    ]
    return Findings(
        ok=not violated,
        path=path,
        worker=worker,
        at=rfc3339(evidence.now),
        flows=count(evidence),
        waiting=unpublished(evidence),
        looked_at=looked_at(evidence),
        seconds=round(time.monotonic() - began, 3),
        violations=violated,
    )


def _keep(violation: Violation, kept: dict[str, list[str]]) -> None:
    # A badly damaged file has millions of violations: only the first of each invariant are kept.
    sentences = kept.setdefault(violation.number, [])
    if len(sentences) < KEPT:
        sentences.append(violation.sentence)
