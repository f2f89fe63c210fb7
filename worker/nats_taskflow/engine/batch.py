"""Decide a batch: load, dedupe, decide each submission in order, record the rows.

All of it runs on the database's thread, in one transaction, which is bounded in time and in what it loads: nobody waits long for its end.
The submissions that do not fit are next, in their order. So whoever sends much, or has large flows, shares the store with everybody else.
"""

from __future__ import annotations

import contextlib
import time

import msgspec
from msgspec.structs import replace

from nats_taskflow.engine.batch_rows import BatchRows
from nats_taskflow.engine.dedupe import same_delivery, same_identity, shown_id
from nats_taskflow.engine.deferral import NO_ANSWERS, NO_PRIOR_ANSWERS, Deferral, PriorAnswers, Questions, keys_of
from nats_taskflow.engine.follow_ups import End, FollowUps
from nats_taskflow.engine.submission import Submission, SubmissionOutcome, UnreadableMessage, what_to_load, what_to_load_for_ends
from nats_taskflow.errors import Conflict, FlowError, Internal, QuotaExceeded
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision, OutcomeName
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.size import within_size
from nats_taskflow.flow.stimuli import CancelFlow, FollowUp, ParentCancelled, Reply, Stimulus
from nats_taskflow.store.port import TooHeavy, Transaction
from nats_taskflow.store.records import ALL, Batch, Loaded
from nats_taskflow.units import Micros
from nats_taskflow.wire.outcomes import encode_for_storage, encode_refused, encode_reply_outcome

_LONG = 0.04
"""Seconds of deciding after which a transaction takes no more submissions."""
_HEAVY, _FEWER = 2 * 1024 * 1024, 8
"""Bytes of states that a transaction loads, and by how much fewer submissions it takes where that is not enough."""


def decide_batch(
    submissions: list[Submission], now: Micros, policy: Policy, prior: PriorAnswers, transaction: Transaction
) -> tuple[BatchDecision, Batch]:
    """Load, decide and save the first submissions, as many as fit.

    Returns what was decided, and what was written.
    """
    fitting, loaded = _load(submissions, now, policy, transaction)
    decision = BatchDecision(loaded, now, policy, prior)
    began = time.thread_time()
    for submission in fitting:
        decision.decide(submission)
        if time.thread_time() - began > _LONG and not submission.group:
            break
    while ends := decision.take_ends():
        decision.follow(ends, _load_followers(ends, decision.room, now, transaction))
    batch = decision.finish()
    transaction.save(batch)
    return decision, batch


def _load(submissions: list[Submission], now: Micros, policy: Policy, transaction: Transaction) -> tuple[list[Submission], Loaded]:
    """Load what the first submissions need, as many as stay light.

    A single submission, or a group of suspects, gets all that it needs.
    """
    count = len(submissions)
    while True:
        fitting = submissions[:count]
        needs = what_to_load(fitting, policy)
        needs.max_bytes = ALL if count == 1 or submissions[0].group else _HEAVY
        try:
            return fitting, transaction.load(needs, now)
        except TooHeavy:
            count = max(count // _FEWER, 1)


def _load_followers(ends: list[End], most: int, now: Micros, transaction: Transaction) -> Loaded:
    """Load who follows the ends of flows, as many as stay light.

    The others are followed up later.
    """
    while True:
        needs = what_to_load_for_ends(ends, most)
        needs.max_bytes = ALL if most <= 1 else _HEAVY
        try:
            return transaction.load(needs, now)
        except TooHeavy:
            most = max(most // _FEWER, 1)


class BatchDecision:
    """A batch while it is decided, in memory: nothing here waits.

    `decide` every submission in order. While `take_ends` returns any, load what they need and `follow` them up. Then `finish`.
    """

    def __init__(self, loaded: Loaded, now: Micros, policy: Policy, prior: PriorAnswers = NO_PRIOR_ANSWERS) -> None:
        self._loaded = loaded
        self._now = now
        self._questions = Questions(policy)
        self._policy = self._questions.policy
        self._answers, self._blocked_keys = prior.answers, set(prior.keys)
        self._rows = BatchRows(loaded, now)
        self._follow_ups = FollowUps()
        self.decided: list[Submission] = []
        self.outcomes: list[SubmissionOutcome] = []
        self.deferrals: list[Deferral] = []

    def decide(self, submission: Submission) -> None:
        """Decide a submission and record its outcome, or defer it.

        It is deferred while one of its questions is open, or while it would overtake a deferred one.
        """
        self._questions.known = self._answers.get(submission, NO_ANSWERS)
        if self._blocked_keys and not self._blocked_keys.isdisjoint(keys_of(submission, self._loaded.world)):
            self._ask(submission)
            self._defer(submission)
            return
        outcome = self._outcome_of(submission)
        if outcome is None:
            self._defer(submission, again=not self._questions.open)
        else:
            self.decided.append(submission)
            self.outcomes.append(outcome)

    def _outcome_of(self, submission: Submission) -> SubmissionOutcome | None:
        """Dedupe, decide and record.

        Returns None where a question is open, or where a part is left for the next transaction.
        """
        repeat = self._dedupe(submission)
        if repeat is not None:
            return repeat
        if isinstance(submission.what, UnreadableMessage):
            return self._refuse(submission, submission.what)
        if isinstance(submission.what, FollowUp):
            self._follow_ups.go_on(submission.what)
            return SubmissionOutcome(name="applied")
        try:
            decision = within_size(submission.what, decide(submission.what, self._loaded.world, self._now, self._policy), self._policy)
        except Internal as damage:
            # The row is set aside and reported; the message is not used up by somebody else's damage.
            self._loaded.world.unreadable.setdefault(damage.details["flow_id"], damage.message)
            return SubmissionOutcome(name="rejected", error=damage, result=encode_refused(damage))
        if self._questions.open:
            return None
        if isinstance(decision, FlowError):
            return self._record(submission, SubmissionOutcome(name="rejected", error=decision, result=encode_refused(decision)))
        part = self._part_of(submission.what, decision)
        if part is not None:
            self._apply(part)
            return None
        if decision.dead is not None:
            self._rows.bury(submission, *decision.dead)
        self._apply(decision)
        return self._record(submission, _outcome(submission, decision))

    def _dedupe(self, submission: Submission) -> SubmissionOutcome | None:
        """Return the outcome of a message that was taken in before (SEMANTICS R5, 6).

        That is the same delivery, a repeat, or another body under the same id.
        """
        row = same_delivery(submission, self._loaded)
        if row is not None:
            return SubmissionOutcome(name=row.outcome, result=row.result, repeat=True)
        first = same_identity(submission, self._loaded)
        if first is None:
            return None
        if first.digest == submission.digest:
            self._rows.add_message(submission, "duplicate", first.result)
            return SubmissionOutcome(name="duplicate", result=first.result, repeat=True)
        message = "this id was used before with another body: the first one counts; send this under a new id"
        error = Conflict(message, id=shown_id(submission))
        outcome = SubmissionOutcome(name="conflict", error=error, result=encode_refused(error), repeat=True)
        self._rows.bury(submission, "conflict", error.message)
        self._rows.add_message(submission, "conflict", outcome.result)
        return outcome

    def _refuse(self, submission: Submission, message: UnreadableMessage) -> SubmissionOutcome:
        """Record an unreadable message: a dead letter, or a refusal that its sender gets."""
        if message.reason is not None:
            self._rows.bury(submission, message.reason, message.error.message)
        name: OutcomeName = "rejected" if message.reason is None else "dead"
        return self._record(submission, SubmissionOutcome(name=name, error=message.error, result=encode_refused(message.error)))

    def _part_of(self, what: Stimulus, decision: Decision) -> Decision | None:
        """Return the part that fits into this transaction, or None where all of it does.

        The rest is decided in the next one. A reply may be for more flows than fit. Held replies are loaded a few at a time: a wait that
        accepts none of them may accept one that was not loaded. Where none of its held replies was loaded, it begins in the next
        transaction.
        """
        if isinstance(what, Reply):
            if len(decision.changes) <= 1:
                return None
            part = self._follow_ups.fit(decision, None if what.payload is msgspec.UNSET else what.payload)
            return replace(part, dead=None, hold=None, displaced=()) if len(part.changes) < len(decision.changes) else None
        opened = {waiter.pair for change in decision.changes for waiter in change.opened if change.still_open(waiter)}
        if opened & (self._loaded.more_held if decision.spoiled else self._loaded.unseen):
            return Decision(outcome="applied", spoiled=decision.spoiled)
        return None

    def _apply(self, decision: Decision) -> None:
        self._rows.add(decision)
        for change in decision.changes:
            self._follow_ups.note(change)

    def _record(self, submission: Submission, outcome: SubmissionOutcome) -> SubmissionOutcome:
        # A request over a quota leaves nothing behind: it may be sent again.
        if submission.seq is not None or (submission.identity is not None and not isinstance(outcome.error, QuotaExceeded)):
            self._rows.add_message(submission, outcome.name, outcome.result, first=True)
        return outcome

    def _ask(self, submission: Submission) -> None:
        # All questions of a submission that stays behind another one are collected now, so that their answers come together.
        if not isinstance(submission.what, UnreadableMessage | FollowUp):
            with contextlib.suppress(Internal):
                decide(submission.what, self._loaded.world, self._now, self._policy)

    def _defer(self, submission: Submission, *, again: bool = False) -> None:
        keys = keys_of(submission, self._loaded.world)
        self._blocked_keys |= keys
        self.deferrals.append(Deferral(submission, keys, self._questions.take_open(), again))

    @property
    def room(self) -> int:
        """How many more followers of ended flows the batch may move."""
        return self._follow_ups.room

    def take_ends(self) -> list[End]:
        """Return what follows from the flows that ended since the last call."""
        return self._follow_ups.take_ends()

    def follow(self, ends: list[End], more: Loaded) -> None:
        """Decide what follows from the ends of flows, given what was loaded for them.

        Nobody can refuse it.
        """
        self._loaded.world.absorb(more.world)  # what the batch knows already is newer
        for end in ends:
            decision = decide(end, self._loaded.world, self._now, self._policy)
            if isinstance(decision, Decision):
                left = more.children_left.get(end.flow_id, 0) if isinstance(end, ParentCancelled) else int(more.more_watchers)
                self._apply(self._follow_ups.fit_end(end, decision, left))

    def finish(self) -> Batch:
        """Return what the batch writes."""
        if self._follow_ups.has_cascaded:
            self._report_children()
        return self._rows.finish(self._follow_ups)

    def _report_children(self) -> None:
        """Name the cancelled children in the outcomes of the commands that cancelled them.

        Repeats of such a command in the batch name them, too.
        """
        results: dict[tuple[bytes, bytes], bytes] = {}
        for at, (submission, outcome) in enumerate(zip(self.decided, self.outcomes, strict=True)):
            result = results.get((submission.digest, outcome.result))
            if result is None and isinstance(submission.what, CancelFlow) and outcome.flow is not None and outcome.error is None:
                children = self._follow_ups.children_of(submission.what.flow_id)
                result = encode_for_storage(outcome.flow, cancelled_children=children) if children is not None else None
                if result is not None and submission.identity is not None:
                    results[submission.digest, outcome.result] = result
            if result is not None:
                self.outcomes[at] = replace(outcome, result=result)
        self._rows.change_results(results)


def _outcome(submission: Submission, decision: Decision) -> SubmissionOutcome:
    """Return a decision's outcome, with its bytes only where somebody will read them."""
    result = b""
    if submission.identity is not None:
        if isinstance(submission.what, Reply):
            result = encode_reply_outcome(decision.outcome, decision.flow)
        elif decision.flow is not None:
            result = encode_for_storage(decision.flow, decision.step)
    return SubmissionOutcome(name=decision.outcome, result=result, flow=decision.flow, step=decision.step)
