"""What deciding returns, and the draft in which it takes shape.

A draft is a flow and the journal entries that are added to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import msgspec

from nats_taskflow.errors import Internal
from nats_taskflow.flow.fold import fold
from nats_taskflow.flow.held_quota import DisplacedReply, HeldCounts
from nats_taskflow.flow.lifecycle import STATUS_AFTER, EventKind
from nats_taskflow.flow.model import DelegateMessage, Flow, FlowEvent, FlowStep, HeldReply, Pair, Waiter
from nats_taskflow.flow.stimuli import Caller
from nats_taskflow.flow.usage import Usage
from nats_taskflow.units import Micros

OutcomeName = Literal[
    "applied", "resumed", "progressed", "held", "duplicate", "conflict", "late", "expired", "flow_mismatch", "rejected", "dead", "unmatched"
]
"""What became of a message (SEMANTICS R14). `unmatched`: a reply of the process itself that nobody waits for and that is not held."""


class MatchedHeld(msgspec.Struct, frozen=True):
    """A held reply that satisfies a wait, and the new outcome of its message."""

    held: HeldReply
    outcome: OutcomeName


class RejectedHeld(msgspec.Struct, frozen=True):
    """A held reply that its wait does not accept: it goes to the dead letters."""

    held: HeldReply
    reason: str
    message: str


class FlowChange(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one flow: its row afterwards, new journal entries and waits.

    `opened`: every wait that was opened, also one that a held reply ended at once. `closed`: the generation that ended. `satisfied`: leaves
    that are closed, by a reply or by a sibling that won, while the rest of the generation goes on.
    """

    flow: Flow
    events: tuple[FlowEvent, ...]
    opened: tuple[Waiter, ...] = ()
    closed: int | None = None
    satisfied: tuple[int, ...] = ()
    step: FlowStep | None = None
    idempotency_key: str | None = None
    outgoing: tuple[DelegateMessage, ...] = ()

    def still_open(self, waiter: Waiter) -> bool:
        """Return whether a wait that this change opened is still open after it."""
        return waiter.wait_id == self.flow.wait_id and waiter.leaf not in self.satisfied


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about a stimulus, for `World.apply` and the store to carry out.

    `flow` is what the outcome shows. `hold`: a reply to keep, and `displaced` the held ones that make room for it. `taken`: held replies
    that satisfy waits, `spoiled` those that waits do not accept. `refused`: waits (flow, generation) whose requests are to be sent again,
    and why. `dead`: the reason and sentence with which the message itself goes to the dead letters.
    """

    outcome: OutcomeName
    flow: Flow | None = None
    changes: tuple[FlowChange, ...] = ()
    taken: tuple[MatchedHeld, ...] = ()
    hold: HeldReply | None = None
    step: FlowStep | None = None
    spoiled: tuple[RejectedHeld, ...] = ()
    displaced: tuple[DisplacedReply, ...] = ()
    refused: tuple[tuple[str, int, str], ...] = ()
    dead: tuple[str, str] | None = None


class View(Protocol):
    """What a decision may look at.

    All that a stimulus needs has been loaded: looking never waits.
    """

    @property
    def holdings(self) -> HeldCounts:
        """How many replies are held, and which would make room first."""
        ...

    def usage(self, agent: str) -> Usage:
        """Return what the flows of an agent take whose quota a stimulus may exceed."""
        ...

    def flow(self, flow_id: str) -> Flow | None:
        """Return the flow, or None.

        Raises `Internal` for a row that cannot be read (SEMANTICS R13).
        """
        ...

    def was_pruned(self, flow_id: str) -> bool:
        """Return whether a flow of this id was deleted while its events may still be read."""
        ...

    def by_key(self, owner: str, key: str) -> Flow | None:
        """Return the flow that this owner started under this idempotency key, or None."""
        ...

    def step(self, flow_id: str, run_id: str) -> FlowStep | None:
        """Return the observed run, or None."""
        ...

    def waiters(self, pair: Pair) -> tuple[Waiter, ...]:
        """List the open waits for the pair."""
        ...

    def held(self, pair: Pair) -> Iterable[HeldReply]:
        """List the held replies for the pair, oldest arrival first, expired ones included."""
        ...

    def held_by_key(self, key: str) -> HeldReply | None:
        """Return the held reply of this key, or None."""
        ...

    def children(self, flow_id: str) -> Iterable[str]:
        """List the flows with this one as parent that have not ended."""
        ...

    def last_flow(self, pair: Pair) -> str | None:
        """Return the id of the flow that last waited for the pair, or None."""
        ...

    def cancel_reason(self, flow_id: str) -> str | None:
        """Return the reason with which the flow's cancellation was requested, or None."""
        ...


def readable_flow(view: View, flow_id: str | None) -> Flow | None:
    """Return the flow, or None where there is none that can be read.

    The engine sets a flow aside that cannot be read (SEMANTICS R13).
    """
    try:
        return view.flow(flow_id) if flow_id is not None else None
    except Internal:
        return None


class Draft:
    """A flow while it is decided.

    Append journal entries, read the flow that they give, then take the `FlowChange`.
    """

    def __init__(self, flow: Flow | None, caller: Caller, now: Micros) -> None:
        self._flow = flow
        self._caller = caller
        self._now = now
        self._events: list[FlowEvent] = []
        self.opened: list[Waiter] = []
        self.satisfied: list[int] = []
        self.step: FlowStep | None = None
        self.idempotency_key: str | None = None
        self.outgoing: list[DelegateMessage] = []
        self._generation = flow.wait_id if flow is not None else None

    @property
    def flow(self) -> Flow:
        """The flow as the entries so far leave it."""
        assert self._flow is not None, "a draft starts with a flow or with `created`"
        return self._flow

    @property
    def now(self) -> Micros:
        """When the entries happen: now, but never before the flow's last change.

        So `updated_at` never decreases.
        """
        return self._now if self._flow is None else max(self._now, self._flow.updated_us)

    @property
    def trace(self) -> str | None:
        """The traceparent of what causes the entries."""
        return self._caller.trace

    def add(
        self, kind: EventKind, payload: dict[str, Any], *, flow_id: str = "", pair: Pair | None = None, caller: Caller | None = None
    ) -> Flow:
        """Append one entry and return the flow after it.

        `flow_id` is needed for `created` only. `pair`: what the entry is about. `caller`: the cause of this entry, where it is another
        message than the draft's.
        """
        before, by = self._flow, caller or self._caller
        event = FlowEvent(
            flow_id=before.id if before else flow_id,
            seq=before.seq + 1 if before else 1,
            revision=_revision_after(before, kind),
            kind=kind,
            payload=payload,
            at_us=self.now,
            actor=by.actor,
            status=STATUS_AFTER[kind] if kind in STATUS_AFTER or before is None else before.status,
            previous_status=before.status if before else None,
            current_step=payload.get("current_step") or (before.current_step if before else ""),
            cause=by.cause,
            correlation_id=pair[1] if pair else None,
            trace=by.trace,
        )
        self._events.append(event)
        self._flow = fold(before, event)
        return self._flow

    def change(self) -> FlowChange:
        """Return the flow and its new entries as one change."""
        same_wait = self.flow.wait_id == self._generation
        return FlowChange(
            flow=self.flow,
            events=tuple(self._events),
            opened=tuple(self.opened),
            closed=None if same_wait else self._generation,
            # Leaves may also close while the wait opens: held replies are taken in the same change (SEMANTICS R4, R10).
            satisfied=tuple(self.satisfied) if self.flow.wait_id is not None else (),
            step=self.step,
            idempotency_key=self.idempotency_key,
            outgoing=tuple(self.outgoing),
        )


def _revision_after(before: Flow | None, kind: EventKind) -> int:
    # A revision counts changes, and observing a run is none (SEMANTICS 1).
    if before is None:
        return 0
    return before.revision if kind is EventKind.STEP_OBSERVED else before.revision + 1
