"""Follow up the ends of flows: resume watchers, cancel children (SEMANTICS 2).

A transaction moves at most `AT_ONCE` followers. An end that may have more is stored in it as unfinished, and the wait engine goes on with
it in transactions of its own: no family is so large that other agents wait for its end.
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
"""Bytes of payload with which a follower counts as one; with more it counts for more: a quarter of a megabyte goes to six at once."""
End = EndOfFlow | ParentCancelled


class FollowUps:
    """What follows from the flows that a batch ended.

    `room`: how many more followers fit. `unfinished`: ends left for later, by flow.
    """

    def __init__(self) -> None:
        self.room = AT_ONCE
        self.unfinished: dict[str, UnfinishedEnd] = {}
        self._ends: list[End] = []
        self._continued: list[str] = []
        self._cancelled_children: dict[str, list[str]] = {}
        self._children_left: dict[str, int] = {}

    @property
    def has_cascaded(self) -> bool:
        """Whether a flow was cancelled that takes its children along."""
        return bool(self._cancelled_children)

    def note(self, change: FlowChange) -> None:
        """Remember a flow that ended by this change."""
        last = change.events[-1] if change.events else None
        if last is None or last.status not in TERMINAL or last.kind is EventKind.STEP_OBSERVED:
            return
        cascade = last.status is FlowStatus.CANCELLED and last.payload.get("cascade", True)
        self._follow(FollowUp(flow_id=change.flow.id, cascade=cascade, trace=last.trace))

    def go_on(self, end: FollowUp) -> None:
        """Go on with an end that an earlier transaction left unfinished."""
        self._continued.append(end.flow_id)
        self._follow(end)

    @property
    def finished(self) -> list[str]:
        """The flows whose stored ends have no followers left."""
        return [flow_id for flow_id in self._continued if flow_id not in self.unfinished]

    def _follow(self, end: FollowUp) -> None:
        self._ends.append(EndOfFlow(flow_id=end.flow_id, trace=end.trace))
        if end.cascade:
            self._ends.append(ParentCancelled(flow_id=end.flow_id, trace=end.trace))

    def take_ends(self) -> list[End]:
        """Return what follows from the flows that ended since the last call."""
        ends, self._ends = self._ends, []
        return ends

    def fit(self, decision: Decision, payload: Any) -> Decision:
        """Return as much as there is room for of a decision that changes several flows.

        All of them get the one payload: a heavy one goes to fewer flows at once.
        """
        if len(decision.changes) <= 1 and self.room > 0:
            self.room -= len(decision.changes)
            return decision
        weight = 1 + len(msgspec.json.encode(payload)) // _WEIGHS_AS_ONE
        fitting = max(self.room // weight, int(self.room == AT_ONCE))
        self.room -= weight * min(len(decision.changes), fitting)
        return replace(decision, changes=decision.changes[:fitting])

    def fit_end(self, end: End, decision: Decision, left: int) -> Decision:
        """Return as much as there is room for of what follows from an end.

        `left`: how many of its followers were not even loaded.
        """
        payload = decision.flow.state_json if isinstance(end, EndOfFlow) and decision.flow is not None else None
        changes = self.fit(decision, payload).changes
        left += len(decision.changes) - len(changes)
        cascade = isinstance(end, ParentCancelled)
        if cascade:
            self._cancelled_children.setdefault(end.flow_id, []).extend(change.flow.id for change in changes)
            self._children_left[end.flow_id] = left
        if left:
            known = self.unfinished.get(end.flow_id)
            cascade = cascade or (known is not None and known.cascade)
            self.unfinished[end.flow_id] = UnfinishedEnd(flow_id=end.flow_id, cascade=cascade, trace=end.trace)
        return replace(decision, changes=changes)

    def children_of(self, flow_id: str) -> CancelledChildren | None:
        """Return the flows cancelled because of this one, and how many will be, if any.

        They come generation by generation.
        """
        children = list(self._cancelled_children.get(flow_id, ()))
        pending = self._children_left.get(flow_id, 0)
        for child in children:
            children.extend(self._cancelled_children.get(child, ()))
            pending += self._children_left.get(child, 0)
        return CancelledChildren(done=len(children), pending=pending, ids=children[:_NAMED]) if children or pending else None
