"""Check the database against what clients were told: nothing acknowledged is lost, nothing came from nowhere, time went forward."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from nats_taskflow.store.invariants.evidence import Evidence
from nats_taskflow.store.invariants.table import INVARIANTS, CheckOfDatabase, Invariant
from tests.faults.client_record import ClientRecord, Operation, Sets

_OUTCOME = "SELECT outcome FROM inbox WHERE scope = ?1 AND key = ?2 AND key IS NOT NULL"
# CROSS JOIN keeps the order: from the flow to its entries. The other way each question reads the whole journal.
_MARK = "SELECT 1 FROM flows AS f CROSS JOIN flow_events AS e WHERE f.id = ?1 AND e.flow = f.n AND e.cause = ?2 AND e.actor = ?3"
_CHANGING = frozenset({"run", "advance", "wait", "delegate", "resume", "finish", "fail"})
"""Verbs that never take effect without a revision of their own; `start` and `cancel` may find their work done, `observe` has none."""


def sets(evidence: Evidence, client: ClientRecord) -> Sets:
    """Compare what clients were told with what is kept."""
    attempted = {(one.scope, one.key) for one in client.operations}
    lost, recovered = set(), set()
    for one in client.operations:
        kept = evidence.value(_OUTCOME, one.scope, one.key) is not None
        if not kept and one.answer != "in_doubt":
            lost.add((one.scope, one.key))
        elif kept and one.answer == "in_doubt":
            recovered.add((one.scope, one.key))
    keys = evidence.rows("SELECT scope, key FROM inbox WHERE key IS NOT NULL") if client.complete else ()
    unexpected = {(scope, key) for scope, key in keys if (scope, key) not in attempted}
    return Sets(lost=frozenset(lost), unexpected=frozenset(unexpected), recovered=frozenset(recovered))


def nothing_acknowledged_is_lost(evidence: Evidence, client: ClientRecord) -> Iterator[str]:
    """I-1: whatever a client was told is accepted has its outcome; what it was told took effect has left its mark."""
    for scope, key in sorted(sets(evidence, client).lost):
        yield f"{key!r} ({scope}) was acknowledged and has no outcome"
    for one in client.operations:
        outcome = evidence.value(_OUTCOME, one.scope, one.key)
        if outcome is not None and one.answer == "applied" and outcome != "applied":
            yield f"{one.key!r} ({one.scope}) was told that it took effect, its outcome is {outcome}"
        elif outcome == "applied" and one.verb in _CHANGING and not _marked(evidence, one):
            yield f"{one.key!r} ({one.scope}) took effect by its outcome, and changed nothing on {one.flow_id}"


def nothing_comes_from_nowhere(evidence: Evidence, client: ClientRecord) -> Iterator[str]:
    """I-2: what was taken in was sent by somebody."""
    for scope, key in sorted(sets(evidence, client).unexpected):
        yield f"{key!r} ({scope}) was taken in, and nobody sent it"


def doubts_end_one_way(evidence: Evidence, client: ClientRecord) -> Iterator[str]:
    """I-6: an operation that nobody answered has happened whole or not at all: its outcome and its mark are both there or neither is."""
    for one in client.operations:
        if one.answer != "in_doubt" or one.flow_id is None or one.verb not in _CHANGING:
            continue
        outcome, marked = evidence.value(_OUTCOME, one.scope, one.key), _marked(evidence, one)
        if marked and outcome != "applied":
            yield f"{one.key!r} ({one.scope}) was in doubt: it changed {one.flow_id}, and its outcome is {outcome}"
        if outcome == "applied" and not marked:
            yield f"{one.key!r} ({one.scope}) was in doubt: it took effect by its outcome, and changed nothing on {one.flow_id}"


def time_goes_forward(evidence: Evidence, client: ClientRecord) -> Iterator[str]:
    """I-10: what was asked for after something else was answered comes after it: O(n log n), since every answer has its revision."""
    by_flow: dict[str, list[Operation]] = defaultdict(list)
    for one in client.operations:
        if one.answer == "applied" and one.flow_id is not None and one.revision is not None and one.completed_us is not None:
            by_flow[one.flow_id].append(one)
    for flow_id, operations in by_flow.items():
        under_way: list[tuple[int, int]] = []
        high = -1
        for one in sorted(operations, key=lambda o: o.invoked_us):
            while under_way and under_way[0][0] < one.invoked_us:
                high = max(high, heapq.heappop(under_way)[1])
            revision = one.revision or 0
            if revision < high or (revision == high and one.verb in _CHANGING):
                yield f"{one.key!r} ({one.scope}) was told of revision {revision} of {flow_id}, asked after {high} had been told of"
            heapq.heappush(under_way, (one.completed_us or 0, revision))


def no_two_win_one_revision(evidence: Evidence, client: ClientRecord) -> Iterator[str]:
    """I-11: no two operations were told that the same revision of a flow is theirs."""
    winners: dict[tuple[str, int], str] = {}
    for one in client.operations:
        if one.answer != "applied" or one.verb not in _CHANGING or one.flow_id is None or one.revision is None:
            continue
        first = winners.setdefault((one.flow_id, one.revision), one.key)
        if first != one.key:
            yield f"{first!r} and {one.key!r} were both told that revision {one.revision} of {one.flow_id} is theirs"


def _marked(evidence: Evidence, one: Operation) -> bool:
    """Tell whether the journal of the operation's flow names it. A flow that was deleted since had its mark."""
    if one.flow_id is None or evidence.value("SELECT 1 FROM flows WHERE id = ?1", one.flow_id) is None:
        return True
    return evidence.value(_MARK, one.flow_id, one.key, one.scope.replace("cmd:", "agent:", 1)) is not None


CHECKS: dict[str, Callable[[Evidence, ClientRecord], Iterator[str]]] = {
    "I-1": nothing_acknowledged_is_lost,
    "I-2": nothing_comes_from_nowhere,
    "I-6": doubts_end_one_way,
    "I-10": time_goes_forward,
    "I-11": no_two_win_one_revision,
}


def with_clients(client: ClientRecord) -> tuple[Invariant, ...]:
    """Return every invariant, those that clients can tell about with the check of what this record says."""

    def extended(invariant: Invariant) -> Invariant:
        look = CHECKS[invariant.number]
        return replace(invariant, checks=(*invariant.checks, CheckOfDatabase(lambda evidence: look(evidence, client))))

    return tuple(extended(one) if one.number in CHECKS else one for one in INVARIANTS)
