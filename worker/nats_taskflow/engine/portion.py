"""Do as much of a batch as one transaction should: bounded in time and in what is loaded, so that nobody waits long for its end.

What is left of the batch is next, in its order. Whoever sends much, or has large flows, so shares the store with everybody else.
"""

from __future__ import annotations

import time

from nats_taskflow.engine.batch import BatchDecision
from nats_taskflow.engine.deferral import PriorAnswers
from nats_taskflow.engine.follow_ups import End
from nats_taskflow.engine.submission import Submission, what_to_load, what_to_load_for_ends
from nats_taskflow.flow.policy import Policy
from nats_taskflow.store.port import TooHeavy, Transaction
from nats_taskflow.store.records import ALL, Batch, Loaded
from nats_taskflow.units import Micros

_LONG = 0.04
"""Seconds of work after which a transaction takes no more decisions: what is left of its batch is next."""
_HEAVY, _FEWER = 2 * 1024 * 1024, 8
"""Bytes of states that a transaction loads, and by how much fewer messages it takes where that is not enough."""


def decided(
    submissions: list[Submission], now: Micros, policy: Policy, before: PriorAnswers, transaction: Transaction
) -> tuple[BatchDecision, Batch]:
    """Load, decide and save what comes first of a batch, on the database's thread; returns what was decided and what was written."""
    taken, loaded = _loaded(submissions, now, policy, transaction)
    deciding = BatchDecision(loaded, now, policy, before)
    began = time.thread_time()
    for submission in taken:
        deciding.decide(submission)
        if time.thread_time() - began > _LONG and not submission.group:
            break
    while ends := deciding.ends():
        deciding.follow(ends, _followers(ends, deciding.room, now, transaction))
    batch = deciding.finished()
    transaction.save(batch)
    return deciding, batch


def _loaded(submissions: list[Submission], now: Micros, policy: Policy, transaction: Transaction) -> tuple[list[Submission], Loaded]:
    """Load what the first submissions need, as many as it takes to stay light; one by itself has what it needs, and so have suspects."""
    count = len(submissions)
    while True:
        taken = submissions[:count]
        needs = what_to_load(taken, policy)
        needs.max_bytes = ALL if count == 1 or submissions[0].group else _HEAVY
        try:
            return taken, transaction.load(needs, now)
        except TooHeavy:
            count = max(count // _FEWER, 1)


def _followers(ends: list[End], most: int, now: Micros, transaction: Transaction) -> Loaded:
    """Load who follows the ends of flows, as many as stay light; the others are followed up later."""
    while True:
        needs = what_to_load_for_ends(ends, most)
        needs.max_bytes = ALL if most <= 1 else _HEAVY
        try:
            return transaction.load(needs, now)
        except TooHeavy:
            most = max(most // _FEWER, 1)
