"""Flows, waits and held replies in memory: what decisions look at.

Decisions are applied to it too. The engine fills a `World` with what a batch names, and saves what changed. Tests use one as the whole
database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from nats_taskflow.errors import Internal
from nats_taskflow.flow.decision import Decision, FlowChange
from nats_taskflow.flow.held_quota import HeldCounts
from nats_taskflow.flow.lifecycle import EventKind
from nats_taskflow.flow.model import Flow, FlowStep, HeldReply, Pair, Waiter
from nats_taskflow.flow.usage import Usage, Usages


class World:
    """A `View` in memory to which decisions can be applied."""

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.steps: dict[tuple[str, str], FlowStep] = {}
        self.waiting: dict[Pair, list[Waiter]] = defaultdict(list)
        self.replies: dict[Pair, list[HeldReply]] = defaultdict(list)
        self.last: dict[Pair, str] = {}
        self.cancel_reasons: dict[str, str | None] = {}
        self.pairs: dict[str, set[Pair]] = defaultdict(set)
        self.unreadable: dict[str, str] = {}
        self.pruned: set[str] = set()
        self.families: dict[str, list[str]] = defaultdict(list)
        self.holdings = HeldCounts()
        self.usages = Usages()

    def usage(self, agent: str) -> Usage:
        """Return what the agent's flows take."""
        return self.usages.of(agent)

    def flow(self, flow_id: str) -> Flow | None:
        """Return the flow, or None.

        Raises `Internal` for a row that cannot be read (SEMANTICS R13).
        """
        if flow_id in self.unreadable:
            message = f"the stored row of flow {flow_id} cannot be read; it is set aside: {self.unreadable[flow_id]}"
            raise Internal(message, flow_id=flow_id)
        return self.flows.get(flow_id)

    def was_pruned(self, flow_id: str) -> bool:
        """Return whether a flow of this id was deleted while its events may still be read."""
        return flow_id in self.pruned

    def add_waiter(self, waiter: Waiter) -> None:
        """Add an open wait; its flow is the last one that waited for the pair."""
        self.last[waiter.pair] = waiter.flow_id
        self.waiting[waiter.pair].append(waiter)
        self.pairs[waiter.flow_id].add(waiter.pair)

    def by_key(self, owner: str, key: str) -> Flow | None:
        """Return the flow that this owner started under this idempotency key, or None."""
        flow_id = self.keys.get((owner, key))
        return self.flow(flow_id) if flow_id is not None else None

    def step(self, flow_id: str, run_id: str) -> FlowStep | None:
        """Return the observed run, or None."""
        return self.steps.get((flow_id, run_id))

    def waiters(self, pair: Pair) -> tuple[Waiter, ...]:
        """List the open waits for the pair."""
        return tuple(self.waiting.get(pair, ()))

    def held(self, pair: Pair) -> Iterable[HeldReply]:
        """List the held replies for the pair, oldest arrival first, expired ones included."""
        return sorted(self.replies.get(pair, ()), key=lambda reply: reply.arrived_us)

    def held_by_key(self, key: str) -> HeldReply | None:
        """Return the held reply of this key, or None."""
        return next((held for held in self.replies.get(_pair_of(key), ()) if held.key == key), None)

    def children(self, flow_id: str) -> Iterable[str]:
        """List the flows with this one as parent that have not ended."""
        return [child for child in self.families.get(flow_id, ()) if not ((flow := self.flows.get(child)) and flow.terminal)]

    def last_flow(self, pair: Pair) -> str | None:
        """Return the id of the flow that last waited for the pair, or None."""
        return self.last.get(pair)

    def cancel_reason(self, flow_id: str) -> str | None:
        """Return the reason with which the flow's cancellation was requested, or None."""
        return self.cancel_reasons.get(flow_id)

    def apply(self, decision: Decision) -> None:
        """Carry a decision out."""
        for change in decision.changes:
            self._apply(change)
        for matched in decision.taken:
            self._use_up(matched.held)
        for rejected in decision.spoiled:
            self._use_up(rejected.held)
        for displaced in decision.displaced:
            self._use_up(displaced.held)
        if decision.hold is not None:
            self.replies[decision.hold.pair].append(decision.hold)
            self.holdings.add(decision.hold)

    def _use_up(self, held: HeldReply) -> None:
        # By its key: a reply that makes room was loaded without its payload, perhaps without its pair.
        replies = self.replies.get(held.pair, [])
        replies[:] = [other for other in replies if other.key != held.key]
        self.holdings.remove(held)

    def absorb(self, other: World) -> None:
        """Add what `other` has and this world has not.

        What is here stays: it may be newer than what was loaded.
        """
        for flow_id, flow in other.flows.items():
            self.flows.setdefault(flow_id, flow)
        self.unreadable |= other.unreadable
        self.cancel_reasons = other.cancel_reasons | self.cancel_reasons
        for parent, children in other.families.items():
            known = self.families[parent]
            known.extend(child for child in children if child not in known)
        for waiters in other.waiting.values():
            for waiter in waiters:
                if waiter not in self.waiting[waiter.pair]:
                    self.add_waiter(waiter)

    def _apply(self, change: FlowChange) -> None:
        """Carry out the change of one flow."""
        flow = change.flow
        before = self.flows.get(flow.id)
        if before is None and flow.parent_flow_id is not None:
            self.families[flow.parent_flow_id].append(flow.id)
        self.usages.note(before, flow)
        self.flows[flow.id] = flow
        for event in change.events:
            if event.kind is EventKind.CANCEL_REQUESTED:
                self.cancel_reasons[flow.id] = event.payload.get("reason")
        if change.idempotency_key is not None:
            self.keys[flow.owner_session_key, change.idempotency_key] = flow.id
        if change.step is not None:
            self.steps[flow.id, change.step.run_id] = change.step
        if change.closed is not None or change.satisfied:
            self._close(flow.id, change.satisfied)
        for waiter in change.opened:
            self.last[waiter.pair] = flow.id
            if change.still_open(waiter):
                self.add_waiter(waiter)

    def _close(self, flow_id: str, leaves: tuple[int, ...]) -> None:
        """Close all waits of a flow, or only some leaves."""
        for pair in tuple(self.pairs[flow_id]):
            remaining = [w for w in self.waiting[pair] if w.flow_id != flow_id or (leaves and w.leaf not in leaves)]
            if len(remaining) < len(self.waiting[pair]):
                self.waiting[pair] = remaining
                self.pairs[flow_id].discard(pair)


def _pair_of(key: str) -> Pair:
    # The pair is the first two lines of the key.
    topic, _, rest = key.partition("\n")
    return topic, rest.partition("\n")[0]
