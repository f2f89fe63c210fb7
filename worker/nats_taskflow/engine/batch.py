"""Decide a batch in memory: from submissions and what was loaded to what is written and what each is told.

Nothing here waits. First deduplication (SEMANTICS R5, 6), then `flow.decide`, the record of the message (R14), what follows from ends.
"""

from __future__ import annotations

import contextlib

import msgspec
from msgspec.structs import replace

from nats_taskflow.engine.dead_letters import letter_of, letter_of_held
from nats_taskflow.engine.dedupe import same_message, shown_id
from nats_taskflow.engine.deferral import NO_ANSWERS, NOTHING_BEFORE, Deferral, PriorAnswers, Questions, keys_of
from nats_taskflow.engine.follow_ups import End, FollowUps
from nats_taskflow.engine.submission import Submission, SubmissionOutcome, UnreadableMessage
from nats_taskflow.errors import Conflict, FlowError, Internal, QuotaExceeded
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision, OutcomeName, RejectedHeld
from nats_taskflow.flow.end import due_of
from nats_taskflow.flow.model import Flow, HeldReply
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.size import within_size
from nats_taskflow.flow.stimuli import CancelFlow, FollowUp, ParentCancelled, Reply, Stimulus
from nats_taskflow.store.records import Batch, FlowWrite, InboxRow, Loaded
from nats_taskflow.units import Micros
from nats_taskflow.wire.outcomes import EXPIRED, encode_for_storage, encode_refused, encode_reply_outcome


class BatchDecision:
    """A batch being decided: the world as the decisions so far leave it, and what they add up to.

    `decide` every submission in order; while `ends` gives any, load what they need and `follow` them up; then `finished`.
    """

    def __init__(self, loaded: Loaded, now: Micros, policy: Policy, before: PriorAnswers = NOTHING_BEFORE) -> None:
        self._loaded = loaded
        self._now = now
        self._questions = Questions(policy)
        self._policy = self._questions.policy
        self._answers, self._blocked = before.answers, set(before.keys)
        self._batch = Batch(usages=loaded.world.usages.changed)
        self._before: dict[str, Flow | None] = {}
        self._keys: dict[str, str] = {}
        self._aftermath = FollowUps()
        self.decided: list[Submission] = []
        self.outcomes: list[SubmissionOutcome] = []
        self.deferrals: list[Deferral] = []

    def ends(self) -> list[End]:
        """Return what follows from the flows that ended since the last call."""
        return self._aftermath.taken()

    @property
    def room(self) -> int:
        """How many followers of ended flows the batch may still move."""
        return self._aftermath.room

    def follow(self, ends: list[End], more: Loaded) -> None:
        """Decide what follows from the ends of flows, with what was loaded for them; it can be refused by nobody."""
        self._loaded.world.absorb(more.world)  # what the batch knows already is newer
        for end in ends:
            decision = decide(end, self._loaded.world, self._now, self._policy)
            if isinstance(decision, Decision):
                left = more.children_left.get(end.flow_id, 0) if isinstance(end, ParentCancelled) else int(more.more_watchers)
                self._apply(self._aftermath.within(end, decision, left))

    def decide(self, submission: Submission) -> None:
        """Decide one submission and record what became of it; or defer it, where a question is open or it would overtake one that is."""
        self._questions.known = self._answers.get(submission, NO_ANSWERS)
        if self._blocked and not self._blocked.isdisjoint(keys_of(submission, self._loaded.world)):
            self._ask(submission)
            self._defer(submission)
            return
        outcome = self._outcome_of(submission)
        if outcome is None:
            self._defer(submission, again=not self._questions.open)
        else:
            self.decided.append(submission)
            self.outcomes.append(outcome)

    def _ask(self, submission: Submission) -> None:
        """Find out what a submission that has to stay behind another one would ask, so that all answers are found at once."""
        if not isinstance(submission.what, UnreadableMessage | FollowUp):
            with contextlib.suppress(Internal):
                decide(submission.what, self._loaded.world, self._now, self._policy)

    def _defer(self, submission: Submission, *, again: bool = False) -> None:
        """Leave the submission undecided, and keep behind it what must not overtake it."""
        keys = keys_of(submission, self._loaded.world)
        self._blocked |= keys
        self.deferrals.append(Deferral(submission, keys, self._questions.taken(), again))

    def _outcome_of(self, submission: Submission) -> SubmissionOutcome | None:
        """Return what became of one submission; None where a question is open, or more is to be done than a transaction should do."""
        known = self._known(submission)
        if known is not None:
            return known
        if isinstance(submission.what, UnreadableMessage):
            return self._refuse(submission, submission.what)
        if isinstance(submission.what, FollowUp):
            return self._follow_up(submission.what)
        try:
            decision = within_size(submission.what, decide(submission.what, self._loaded.world, self._now, self._policy), self._policy)
        except Internal as unreadable:
            # The row is set aside and reported; the message is not used up by somebody else's damage.
            self._loaded.world.unreadable.setdefault(unreadable.details["flow_id"], unreadable.message)
            return SubmissionOutcome(name="rejected", error=unreadable, result=encode_refused(unreadable))
        if self._questions.open:
            return None
        if isinstance(decision, FlowError):
            return self._record(submission, SubmissionOutcome(name="rejected", error=decision, result=encode_refused(decision)))
        part = self._part_of(submission.what, decision)
        if part is not None:
            self._apply(part)
            return None
        if decision.dead is not None:
            self._bury(submission, *decision.dead)
        self._apply(decision)
        return self._record(submission, self._told(submission, decision))

    def _part_of(self, what: Stimulus, decision: Decision) -> Decision | None:
        """Return the part that fits into this transaction, where that is not all: the rest is decided in the next one.

        A reply may be for many flows; and a wait that accepts none of the held replies that were loaded may accept one that was not. Where
        none was loaded the wait begins in the next one.
        """
        if isinstance(what, Reply):
            part = (
                self._aftermath.cut(decision, None if what.payload is msgspec.UNSET else what.payload) if decision.changes[1:] else decision
            )
            return replace(part, dead=None, hold=None, displaced=()) if len(part.changes) < len(decision.changes) else None
        opened = {waiter.pair for change in decision.changes for waiter in change.opened if change.still_open(waiter)}
        if opened & (self._loaded.more_held if decision.spoiled else self._loaded.unseen):
            return Decision(outcome="applied", spoiled=decision.spoiled)
        return None

    def _known(self, submission: Submission) -> SubmissionOutcome | None:
        """Answer a message that was taken in before: the same delivery again, a repeat, or another body under the same id."""
        if submission.seq is not None:
            same = same_message(submission, self._loaded.places.get((submission.source, submission.seq), ()))
            if same is not None:
                return SubmissionOutcome(name=same.outcome, result=same.result, repeat=True)
        if submission.identity is None:
            return None
        first = self._loaded.inbox.get((submission.identity.scope, submission.identity.key))
        if first is None:
            return None
        if first.digest == submission.identity.digest:
            self._note(submission, "duplicate", first.result)
            return SubmissionOutcome(name="duplicate", result=first.result, repeat=True)
        return self._conflict(submission)

    def _conflict(self, submission: Submission) -> SubmissionOutcome:
        """Keep what came under a used id as a dead letter; the first one stays (SEMANTICS R5)."""
        said = "this id was used before with another body: the first one counts; send this under a new id"
        error = Conflict(said, id=shown_id(submission))
        outcome = SubmissionOutcome(name="conflict", error=error, result=encode_refused(error), repeat=True)
        self._bury(submission, "conflict", error.message)
        self._note(submission, "conflict", outcome.result)
        return outcome

    def _refuse(self, submission: Submission, useless: UnreadableMessage) -> SubmissionOutcome:
        """Record a message that could not be read: dead where it could not even be attributed, rejected where its sender can ask."""
        if useless.reason is not None:
            self._bury(submission, useless.reason, useless.error.message)
        name: OutcomeName = "rejected" if useless.reason is None else "dead"
        return self._record(submission, SubmissionOutcome(name=name, error=useless.error, result=encode_refused(useless.error)))

    def _bury(self, submission: Submission, reason: str, message: str) -> None:
        """Add the whole message to the dead letters."""
        if submission.raw is None:
            return
        self._batch.dead.append(letter_of(submission, submission.raw, reason, message, self._now))

    def _told(self, submission: Submission, decision: Decision) -> SubmissionOutcome:
        """Say what the decision means to whoever asked; bytes only where somebody will read them."""
        result = b""
        if submission.identity is not None:
            if isinstance(submission.what, Reply):
                result = encode_reply_outcome(decision.outcome, decision.flow)
            elif decision.flow is not None:
                result = encode_for_storage(decision.flow, decision.step)
        return SubmissionOutcome(name=decision.outcome, result=result, flow=decision.flow, step=decision.step)

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
            batch.outgoing.extend(change.outgoing)
            self._aftermath.note(change)
            if change.step is not None:
                batch.steps.append(change.step)
            if change.closed is not None:
                batch.closed.append((flow_id, change.closed))
            batch.satisfied.extend((flow_id, change.flow.wait_id or 0, leaf) for leaf in change.satisfied)
            batch.opened.extend((waiter, True) for waiter in change.opened)
        batch.refused.extend(decision.refused)
        for taken in decision.taken:
            result = encode_reply_outcome(taken.outcome, decision.flow)
            batch.taken.append((taken.held, taken.outcome, result))
            self._let_go(taken.held, taken.outcome, result)
        for spoiled in decision.spoiled:
            self._spoil(spoiled)
        for displaced in decision.displaced:
            batch.displaced.append((displaced.held.key, displaced.message))
            self._let_go(displaced.held, "expired", EXPIRED)
        if decision.hold is not None:
            batch.held.append(decision.hold)
            batch.count("held", 1)
        world.apply(decision)

    def _spoil(self, spoiled: RejectedHeld) -> None:
        """Bury a held reply that its wait does not accept."""
        held = spoiled.held
        result = encode_reply_outcome("rejected", None)
        self._batch.spoiled.append((held, letter_of_held(spoiled, self._now), result))
        self._let_go(held, "rejected", result)

    def _let_go(self, held: HeldReply, outcome: OutcomeName, result: bytes) -> None:
        """Count a reply that is held no more, and change what a repeat of it is told from now on."""
        self._batch.count(f"inbox.{outcome}", 1)
        self._batch.count("inbox.held", -1)
        self._batch.count("held", -1)
        row = self._loaded.inbox.get(("reply", held.key))
        if row is not None:
            self._loaded.inbox["reply", held.key] = told = replace(row, outcome=outcome, result=result)
            if row.source_seq is not None:
                rows = self._loaded.places.get((row.source, row.source_seq), [])
                rows[:] = [told if known is row else known for known in rows]

    def _record(self, submission: Submission, outcome: SubmissionOutcome) -> SubmissionOutcome:
        """Store the message's one outcome under its identity; a request beyond a quota leaves nothing behind, and may be sent again."""
        if submission.seq is not None or (submission.identity is not None and not isinstance(outcome.error, QuotaExceeded)):
            self._note(submission, outcome.name, outcome.result, first=True)
        return outcome

    def _note(self, submission: Submission, outcome: OutcomeName, result: bytes, *, first: bool = False) -> None:
        """Add the message to the inbox; repeats keep their place but not the identity, which is the first one's."""
        identity = submission.identity if first else None
        row = InboxRow(
            scope=identity.scope if identity else None,
            key=identity.key if identity else None,
            digest=submission.digest,
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
            self._loaded.places.setdefault((submission.source, submission.seq), []).append(row)

    def _tell_of_children(self) -> None:
        """Say in the outcome of each command that cancelled a flow what became of its children; its repeats in the batch say the same."""
        changed: dict[tuple[bytes, bytes], bytes] = {}
        for at, (submission, outcome) in enumerate(zip(self.decided, self.outcomes, strict=True)):
            told = changed.get((submission.digest, outcome.result))
            if told is None and isinstance(submission.what, CancelFlow) and outcome.flow is not None and outcome.error is None:
                children = self._aftermath.children_of(submission.what.flow_id)
                told = encode_for_storage(outcome.flow, cancelled_children=children) if children is not None else None
                if told is not None and submission.identity is not None:
                    changed[submission.digest, outcome.result] = told
            if told is not None:
                self.outcomes[at] = replace(outcome, result=told)
        self._batch.inbox = [replace(row, result=changed.get((row.digest, row.result), row.result)) for row in self._batch.inbox]

    def _follow_up(self, end: FollowUp) -> SubmissionOutcome:
        """Go on with an end that was not followed up to its end."""
        self._aftermath.follow(end)
        self._batch.followed_up.append(end.flow_id)
        return SubmissionOutcome(name="applied")

    def finished(self) -> Batch:
        """Return what the batch writes: each touched flow once, as it is at the end."""
        if self._aftermath.has_cascaded:
            self._tell_of_children()
        self._batch.unfinished = list(self._aftermath.unfinished.values())
        self._batch.followed_up = [flow_id for flow_id in self._batch.followed_up if flow_id not in self._aftermath.unfinished]
        for flow_id, before in self._before.items():
            flow = self._loaded.world.flows[flow_id]
            self._batch.flows.append(FlowWrite(flow=flow, was=before, due_us=due_of(flow), idempotency_key=self._keys.get(flow_id)))
            if before is not None:
                self._batch.count(f"flows.{before.status.value}", -1)
            self._batch.count(f"flows.{flow.status.value}", 1)
        # A wait may open and close within one batch: what counts is how the batch leaves it.
        waiting = self._loaded.world.waiting
        self._batch.opened = [(waiter, waiter in waiting.get(waiter.pair, ())) for waiter, _ in self._batch.opened]
        self._batch.set_aside = self._loaded.world.unreadable
        return self._batch
