"""Follow up flows that ended, some followers at a time: watchers resume, and children are cancelled with their parent (SEMANTICS 2).

A transaction moves at most `AT_ONCE` followers. Ends that may have more are stored in the same transaction, and followed up by the wait
engine in transactions of their own, whatever happens in between: no family is so large that other agents wait for its end.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from nats_taskflow.flow.decision import Decision, FlowChange
from nats_taskflow.flow.lifecycle import TERMINAL, EventKind, FlowStatus
from nats_taskflow.flow.stimuli import EndOfFlow, FollowUp, ParentCancelled
from nats_taskflow.store.records import UnfinishedEnd
from nats_taskflow.wire.answers import CancelledChildren

AT_ONCE = 200
_NAMED = 100
_WEIGHS_AS_ONE = 8 * 1024
"""Bytes that each follower is given without being counted twice: a quarter of a megabyte goes to six at once."""
End = EndOfFlow | ParentCancelled


class FollowUps:
    """What follows from the flows that a batch ended. `unfinished`: ends that are to be followed up later, by flow."""

    def __init__(self) -> None:
        self.room = AT_ONCE
        self.unfinished: dict[str, UnfinishedEnd] = {}
        self._ends: list[End] = []
        self._fallen: dict[str, list[str]] = {}
        self._left: dict[str, int] = {}

    @property
    def has_cascaded(self) -> bool:
        """Whether flows were cancelled whose children go with them."""
        return bool(self._fallen)

    def note(self, change: FlowChange) -> None:
        """Remember a flow that ended by this change."""
        last = change.events[-1] if change.events else None
        if last is None or last.status not in TERMINAL or last.kind is EventKind.STEP_OBSERVED:
            return
        cascade = last.status is FlowStatus.CANCELLED and last.payload.get("cascade", True)
        self.follow(FollowUp(flow_id=change.flow.id, cascade=cascade, trace=last.trace))

    def follow(self, end: FollowUp) -> None:
        """Follow up the end of a flow."""
        self._ends.append(EndOfFlow(flow_id=end.flow_id, trace=end.trace))
        if end.cascade:
            self._ends.append(ParentCancelled(flow_id=end.flow_id, trace=end.trace))

    def taken(self) -> list[End]:
        """Return what follows from the flows that ended since the last call."""
        ends, self._ends = self._ends, []
        return ends

    def cut(self, decision: Decision, payload: Any) -> Decision:
        """Return what there is room for of a decision that gives the payload to several flows. What weighs much goes to fewer at once."""
        if len(decision.changes) <= 1 and self.room > 0:
            self.room -= len(decision.changes)
            return decision
        weight = 1 + len(msgspec.json.encode(payload)) // _WEIGHS_AS_ONE
        fitting = max(self.room // weight, int(self.room == AT_ONCE))
        self.room -= weight * min(len(decision.changes), fitting)
        return replace(decision, changes=decision.changes[:fitting])

    def within(self, end: End, decision: Decision, left: int) -> Decision:
        """Return what there is room for of what follows from an end; `left`: how many followers it has that were not even loaded."""
        brings = decision.flow.state_json if isinstance(end, EndOfFlow) and decision.flow is not None else None
        changes = self.cut(decision, brings).changes
        left += len(decision.changes) - len(changes)
        cascade = isinstance(end, ParentCancelled)
        if cascade:
            self._fallen.setdefault(end.flow_id, []).extend(change.flow.id for change in changes)
            self._left[end.flow_id] = left
        if left:
            known = self.unfinished.get(end.flow_id)
            cascade = cascade or (known is not None and known.cascade)
            self.unfinished[end.flow_id] = UnfinishedEnd(flow_id=end.flow_id, cascade=cascade, trace=end.trace)
        return replace(decision, changes=changes)

    def children_of(self, flow_id: str) -> CancelledChildren | None:
        """Say which flows were cancelled because of this one, generation by generation, and how many are going to be; None: none."""
        found = list(self._fallen.get(flow_id, ()))
        pending = self._left.get(flow_id, 0)
        for child in found:
            found.extend(self._fallen.get(child, ()))
            pending += self._left.get(child, 0)
        return CancelledChildren(done=len(found), pending=pending, ids=found[:_NAMED]) if found or pending else None
