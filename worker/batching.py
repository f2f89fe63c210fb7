"""Decide a batch in memory: from submissions and what was loaded to what is written and what each is told.

Pure but for the order it keeps: nothing here waits. Deduplication comes first (SEMANTICS R5, 6), then `flow.decide`, then the record of
what became of the message (R14).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec.structs import replace

from worker.errors import Conflict, FlowError, Internal
from worker.flow.commands import ObserveStep, ParkFlow, Policy, Reply, StartFlow, Stimulus
from worker.flow.decide import decide
from worker.flow.decision import Decision, OutcomeName
from worker.flow.ending import due_of
from worker.flow.model import Flow, FlowStep, Pair
from worker.flow.waits import ExternalEvent, from_value, nodes
from worker.store.base import Batch, DeadLetter, FlowWrite, InboxRow, Loaded, Needs
from worker.times import Micros
from worker.wire.codec import Identity
from worker.wire.outcomes import applied, refused, reply_outcome


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a submission. `result` is the answer in bytes, for whoever asked over the wire; `repeat`: it was known."""

    name: OutcomeName
    result: bytes = b""
    flow: Flow | None = None
    step: FlowStep | None = None
    error: FlowError | None = None
    repeat: bool = False


class Raw(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it came, for the dead letters."""

    subject: str
    headers: dict[str, str]
    body: bytes


class Useless(msgspec.Struct, frozen=True, kw_only=True):
    """A message nothing can be done with: `reason` is its dead letter's token; None where the refusal alone is its outcome."""

    error: FlowError
    reason: str | None


class Submission(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One thing to decide, or one useless message to keep, and the future that hears of it.

    `raw` is what goes into the dead letters should the message come to nothing; requests that are answered have none.
    """

    what: Stimulus | Useless
    identity: Identity | None
    source: str
    seq: int | None
    done: asyncio.Future[Any]
    raw: Raw | None = None
    alone: bool = False


def needs_of(submissions: list[Submission]) -> Needs:
    """Say what has to be loaded to decide the batch."""
    needs = Needs()
    for submission in submissions:
        if submission.identity is not None:
            needs.inbox.add((submission.identity.scope, submission.identity.key))
        if submission.seq is not None:
            needs.places.add((submission.source, submission.seq))
        _need(submission.what, needs)
    return needs


def _need(stimulus: Stimulus | Useless, needs: Needs) -> None:
    """Add what one stimulus looks at."""
    match stimulus:
        case Useless():
            return
        case Reply():
            needs.pairs.add((stimulus.topic, stimulus.correlation_id))
            if stimulus.flow_id is not None:
                needs.flows.add(stimulus.flow_id)
        case StartFlow():
            if not stimulus.minted:
                needs.flows.add(stimulus.flow_id)
            if stimulus.idempotency_key is not None:
                needs.keys.add((stimulus.owner_session_key, stimulus.idempotency_key))
        case _:
            needs.flows.add(stimulus.flow_id)
    if isinstance(stimulus, ParkFlow):
        needs.parking |= _pairs(stimulus)
    if isinstance(stimulus, ObserveStep):
        needs.steps.add((stimulus.flow_id, stimulus.run_id))


def _pairs(command: ParkFlow) -> set[Pair]:
    """List the pairs a wait names; one with a minted correlation id is new to everybody."""
    condition = from_value(command.condition)
    if condition is None:
        return set()
    leaves = [node.condition for node in nodes(condition)]
    return {(leaf.topic, leaf.correlation_id) for leaf in leaves if isinstance(leaf, ExternalEvent) and leaf.correlation_id is not None}


def decide_batch(submissions: list[Submission], loaded: Loaded, now: Micros, policy: Policy) -> tuple[Batch, list[Outcome]]:
    """Decide every submission in order on the loaded world; returns what to write and what to tell each."""
    deciding = _Deciding(loaded, now, policy)
    outcomes = [deciding.decide(submission) for submission in submissions]
    return deciding.finished(), outcomes


class _Deciding:
    """A batch being decided: the world as the decisions so far leave it, and what they add up to."""

    def __init__(self, loaded: Loaded, now: Micros, policy: Policy) -> None:
        self._loaded = loaded
        self._now = now
        self._policy = policy
        self._batch = Batch()
        self._before: dict[str, Flow | None] = {}
        self._keys: dict[str, str] = {}

    def decide(self, submission: Submission) -> Outcome:
        """Decide one submission and record what became of it."""
        known = self._known(submission)
        if known is not None:
            return known
        if isinstance(submission.what, Useless):
            return self._refuse(submission, submission.what)
        try:
            decision = decide(submission.what, self._loaded.world, self._now, self._policy)
        except Internal as unreadable:
            # The row is set aside and reported; the message is not used up by somebody else's damage.
            self._loaded.world.unreadable.setdefault(unreadable.details["flow_id"], unreadable.message)
            return Outcome(name="rejected", error=unreadable, result=refused(unreadable))
        if isinstance(decision, FlowError):
            return self._record(submission, Outcome(name="rejected", error=decision, result=refused(decision)))
        if decision.outcome == "flow_mismatch":
            self._bury(submission, "flow_mismatch", "the reply names another flow than the one that waits for it")
        self._apply(decision)
        return self._record(submission, self._told(submission, decision))

    def _known(self, submission: Submission) -> Outcome | None:
        """Answer a message that was taken in before: the same delivery again, a repeat, or another body under the same id."""
        if submission.seq is not None:
            same = self._loaded.places.get((submission.source, submission.seq))
            if same is not None:
                return Outcome(name=same.outcome, result=same.result, repeat=True)
        if submission.identity is None:
            return None
        first = self._loaded.inbox.get((submission.identity.scope, submission.identity.key))
        if first is None:
            return None
        if first.digest == submission.identity.digest:
            self._note(submission, "duplicate", first.result)
            return Outcome(name="duplicate", result=first.result, repeat=True)
        return self._conflict(submission)

    def _conflict(self, submission: Submission) -> Outcome:
        """Keep what came under a used id as a dead letter; the first one stays (SEMANTICS R5)."""
        error = Conflict("this id was used before with another body: the first one counts; send this under a new id", id=_id(submission))
        outcome = Outcome(name="conflict", error=error, result=refused(error), repeat=True)
        self._bury(submission, "conflict", error.message)
        self._note(submission, "conflict", outcome.result)
        return outcome

    def _refuse(self, submission: Submission, useless: Useless) -> Outcome:
        """Record a message that could not be read: dead where it could not even be attributed, rejected where its sender can ask."""
        if useless.reason is not None:
            self._bury(submission, useless.reason, useless.error.message)
        name: OutcomeName = "rejected" if useless.reason is None else "dead"
        return self._record(submission, Outcome(name=name, error=useless.error, result=refused(useless.error)))

    def _bury(self, submission: Submission, reason: str, message: str) -> None:
        """Add the whole message to the dead letters."""
        if submission.raw is None:
            return
        letter = DeadLetter(
            reason=reason,
            message=message,
            subject=submission.raw.subject,
            stream=submission.source,
            seq=submission.seq,
            headers=submission.raw.headers,
            body=submission.raw.body,
            at_us=self._now,
        )
        self._batch.dead.append(letter)

    def _told(self, submission: Submission, decision: Decision) -> Outcome:
        """Say what the decision means to whoever asked; bytes only where somebody will read them."""
        result = b""
        if submission.identity is not None:
            if isinstance(submission.what, Reply):
                result = reply_outcome(decision.outcome, decision.flow)
            elif decision.flow is not None:
                result = applied(decision.flow, decision.step)
        return Outcome(name=decision.outcome, result=result, flow=decision.flow, step=decision.step)

    def _apply(self, decision: Decision) -> None:
        """Carry the decision out on the world and add it to the batch."""
        world, batch = self._loaded.world, self._batch
        for change in decision.changes:
            flow_id = change.flow.id
            if flow_id not in self._before:
                self._before[flow_id] = world.flows.get(flow_id)
            if change.idempotency_key is not None:
                self._keys[flow_id] = change.idempotency_key
            batch.events.extend(change.events)
            if change.step is not None:
                batch.steps.append(change.step)
            if change.closed is not None:
                batch.closed.append((flow_id, change.closed))
            batch.satisfied.extend((flow_id, change.flow.wait_id or 0, leaf) for leaf in change.satisfied)
            batch.opened.extend((waiter, True) for waiter in change.opened)
        for taken in decision.taken:
            result = reply_outcome(taken.outcome, decision.flow)
            batch.taken.append((taken.held, taken.outcome, result))
            self._retell(taken.held.key, taken.outcome, result)
            batch.count(f"inbox.{taken.outcome}", 1)
            batch.count("inbox.held", -1)
            batch.count("held", -1)
        if decision.hold is not None:
            batch.held.append(decision.hold)
            batch.count("held", 1)
        world.apply(decision)

    def _retell(self, key: str, outcome: OutcomeName, result: bytes) -> None:
        """Change what a repeat of a held reply is told from now on."""
        row = self._loaded.inbox.get(("reply", key))
        if row is not None:
            self._loaded.inbox["reply", key] = told = replace(row, outcome=outcome, result=result)
            if row.source_seq is not None:
                self._loaded.places[row.source, row.source_seq] = told

    def _record(self, submission: Submission, outcome: Outcome) -> Outcome:
        """Store the message's one outcome under its identity."""
        if submission.identity is not None or submission.seq is not None:
            self._note(submission, outcome.name, outcome.result, first=True)
        return outcome

    def _note(self, submission: Submission, outcome: OutcomeName, result: bytes, *, first: bool = False) -> None:
        """Add the message to the inbox; repeats keep their place but not the identity, which is the first one's."""
        identity = submission.identity if first else None
        row = InboxRow(
            scope=identity.scope if identity else None,
            key=identity.key if identity else None,
            digest=submission.identity.digest if submission.identity else b"",
            outcome=outcome,
            result=result,
            source=submission.source,
            source_seq=submission.seq,
            at_us=self._now,
        )
        self._batch.inbox.append(row)
        self._batch.count(f"inbox.{outcome}", 1)
        if identity is not None:
            self._loaded.inbox[identity.scope, identity.key] = row
        if submission.seq is not None:
            self._loaded.places[submission.source, submission.seq] = row

    def finished(self) -> Batch:
        """Return what the batch writes: each touched flow once, as it is at the end."""
        for flow_id, before in self._before.items():
            flow = self._loaded.world.flows[flow_id]
            write = FlowWrite(flow=flow, was=before, due_us=due_of(flow), idempotency_key=self._keys.get(flow_id))
            self._batch.flows.append(write)
            if before is not None:
                self._batch.count(f"flows.{before.status.value}", -1)
            self._batch.count(f"flows.{flow.status.value}", 1)
        # A wait may open and close within one batch: what counts is how the batch leaves it.
        waiting = self._loaded.world.waiting
        self._batch.opened = [(waiter, waiter in waiting.get(waiter.pair, ())) for waiter, _ in self._batch.opened]
        return self._batch


def _id(submission: Submission) -> str:
    """Return the id that a person would recognise: the last part of the key."""
    return submission.identity.key.rsplit("\n", 1)[-1] if submission.identity else ""
