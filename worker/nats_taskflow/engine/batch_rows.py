"""Record a batch: the rows that its decisions add up to."""

from __future__ import annotations

from msgspec.structs import replace

from nats_taskflow.engine.dead_letters import letter_of, letter_of_held
from nats_taskflow.engine.follow_ups import FollowUps
from nats_taskflow.engine.submission import Submission
from nats_taskflow.flow.decision import Decision, OutcomeName, RejectedHeld
from nats_taskflow.flow.end import due_of
from nats_taskflow.flow.model import Flow, HeldReply
from nats_taskflow.store.records import Batch, FlowWrite, InboxRow, Loaded
from nats_taskflow.units import Micros
from nats_taskflow.wire.outcomes import EXPIRED, encode_reply_outcome


class BatchRows:
    """What one batch writes.

    Each change is made to the loaded rows too: the next decision of the batch builds on it.
    """

    def __init__(self, loaded: Loaded, now: Micros) -> None:
        self._loaded = loaded
        self._now = now
        self._batch = Batch(usages=loaded.world.usages.changed)
        self._flows_before: dict[str, Flow | None] = {}
        self._idempotency_keys: dict[str, str] = {}

    def add(self, decision: Decision) -> None:
        """Carry a decision out."""
        world, batch = self._loaded.world, self._batch
        for change in decision.changes:
            flow_id = change.flow.id
            if flow_id not in self._flows_before:
                self._flows_before[flow_id] = world.flows.get(flow_id)
            if change.idempotency_key is not None:
                self._idempotency_keys[flow_id] = change.idempotency_key
            batch.events.extend(change.events)
            batch.outgoing.extend(change.outgoing)
            if change.step is not None:
                batch.steps.append(change.step)
            if change.closed is not None:
                batch.closed.append((flow_id, change.closed))
            batch.satisfied.extend((flow_id, change.flow.wait_id or 0, leaf) for leaf in change.satisfied)
            batch.opened.extend((waiter, True) for waiter in change.opened)
        batch.refused.extend(decision.refused)
        for matched in decision.taken:
            result = encode_reply_outcome(matched.outcome, decision.flow)
            batch.taken.append((matched.held, matched.outcome, result))
            self._release_held(matched.held, matched.outcome, result)
        for rejected in decision.spoiled:
            self._reject_held(rejected)
        for displaced in decision.displaced:
            batch.displaced.append((displaced.held.key, displaced.message))
            self._release_held(displaced.held, "expired", EXPIRED)
        if decision.hold is not None:
            batch.held.append(decision.hold)
            batch.count("held", 1)
        world.apply(decision)

    def add_message(self, submission: Submission, outcome: OutcomeName, result: bytes, *, first: bool = False) -> None:
        """Add a message to the inbox.

        A repeat is kept by its place only: the identity belongs to the first message.
        """
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

    def bury(self, submission: Submission, reason: str, message: str) -> None:
        """Add the whole message to the dead letters, unless its sender gets an answer."""
        if submission.raw is not None:
            self._batch.dead.append(letter_of(submission, submission.raw, reason, message, self._now))

    def _reject_held(self, rejected: RejectedHeld) -> None:
        result = encode_reply_outcome("rejected", None)
        self._batch.spoiled.append((rejected.held, letter_of_held(rejected, self._now), result))
        self._release_held(rejected.held, "rejected", result)

    def _release_held(self, held: HeldReply, outcome: OutcomeName, result: bytes) -> None:
        """Update the counters and the stored outcome of a reply that is no longer held."""
        self._batch.count(f"inbox.{outcome}", 1)
        self._batch.count("inbox.held", -1)
        self._batch.count("held", -1)
        row = self._loaded.inbox.get(("reply", held.key))
        if row is not None:
            self._loaded.inbox["reply", held.key] = released = replace(row, outcome=outcome, result=result)
            if row.source_seq is not None:
                rows = self._loaded.places.get((row.source, row.source_seq), [])
                rows[:] = [released if known is row else known for known in rows]

    def change_results(self, results: dict[tuple[bytes, bytes], bytes]) -> None:
        """Store other results for messages, by their digest and the result they had."""
        self._batch.inbox = [replace(row, result=results.get((row.digest, row.result), row.result)) for row in self._batch.inbox]

    def finish(self, follow_ups: FollowUps) -> Batch:
        """Return what is written: each touched flow once, as it is at the end."""
        batch, world = self._batch, self._loaded.world
        batch.unfinished = list(follow_ups.unfinished.values())
        batch.followed_up = follow_ups.finished
        for flow_id, before in self._flows_before.items():
            flow = world.flows[flow_id]
            batch.flows.append(FlowWrite(flow=flow, was=before, due_us=due_of(flow), idempotency_key=self._idempotency_keys.get(flow_id)))
            if before is not None:
                batch.count_flow(before, -1)
            batch.count_flow(flow, 1)
        # A wait may open and close within one batch: what counts is how the batch leaves it.
        batch.opened = [(waiter, waiter in world.waiting.get(waiter.pair, ())) for waiter, _ in batch.opened]
        batch.set_aside = world.unreadable
        return batch
