"""Match a reply to the flows that wait for it, or decide what becomes of it.

See SEMANTICS 4. Who waits for the pair now (R1, R6)? Does the reply name another flow (R2)? Did it come in time (R9)? If nobody waits: has
the flow that waited last ended (late, R7), or is the reply early (held, R4)?
"""

from __future__ import annotations

from collections.abc import Iterable

from nats_taskflow.errors import Internal
from nats_taskflow.flow.conditions import deadline_of
from nats_taskflow.flow.decision import Decision, Draft, FlowChange, OutcomeName, View, readable_flow
from nats_taskflow.flow.end import EndedBy, cancel, condition_of, pass_time, satisfy
from nats_taskflow.flow.held_quota import displace
from nats_taskflow.flow.model import Flow, HeldReply, Waiter
from nats_taskflow.flow.payload_check import payload_refusal
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import WORKER, Caller, Reply
from nats_taskflow.units import Micros

_RANK: dict[OutcomeName, int] = {"late": 0, "progressed": 1, "resumed": 2}
"""With several waiters the message's one outcome is the strongest of what it did."""


_MISMATCH = ("flow_mismatch", "the reply names another flow than the one that waits for it")


def match_reply(reply: Reply, view: View, now: Micros, policy: Policy) -> Decision:
    """Decide a reply. Nothing is refused: every reply has an outcome (SEMANTICS R14)."""
    waiters = _readable_waits(view.waiters((reply.topic, reply.correlation_id)), view)
    if reply.flow_id is not None and waiters:
        addressed = [(waiter, flow) for waiter, flow in waiters if waiter.flow_id == reply.flow_id]
        if not addressed:
            return Decision(outcome="flow_mismatch", dead=_MISMATCH)
        waiters = addressed
    changes: list[FlowChange] = []
    outcome: OutcomeName | None = None
    shown: Flow | None = None
    rejection: tuple[str, str] | None = None
    for waiter, flow in waiters:
        refusal = payload_refusal(condition_of(flow), flow, waiter.leaf, reply.payload, policy)
        if refusal is not None and not flow.cancel_requested:
            rejection = refusal
            continue
        draft, result = _meet(flow, waiter, reply, view, now)
        if draft.flow is not flow:
            changes.append(draft.change())
        if result is not None and (outcome is None or _RANK[result] > _RANK[outcome]):
            outcome, shown = result, draft.flow
    if outcome is not None:
        return Decision(outcome=outcome, flow=shown, changes=tuple(changes))
    if rejection is not None:
        return Decision(outcome="rejected", changes=tuple(changes), dead=rejection)
    return _unawaited(reply, view, now, policy, tuple(changes))


def _readable_waits(waiters: Iterable[Waiter], view: View) -> list[tuple[Waiter, Flow]]:
    """Pair open waits with their flows.

    A wait whose flow cannot be read counts as none: the engine sets that flow aside (R13).
    """
    readable = []
    for waiter in waiters:
        try:
            flow = view.flow(waiter.flow_id)
            if flow is not None and flow.wait_id == waiter.wait_id:
                condition_of(flow)
                readable.append((waiter, flow))
        except Internal:
            continue
    return readable


def _meet(flow: Flow, waiter: Waiter, reply: Reply, view: View, now: Micros) -> tuple[Draft, OutcomeName | None]:
    """Let the reply meet one open wait.

    The outcome is None where the wait had timed out before the reply came (R9).
    """
    by = Caller(actor=f"topic:{reply.topic}", cause=reply.event_id or None, trace=reply.trace)
    draft = Draft(flow, by, now)
    if flow.cancel_requested:
        cancel(draft, view.cancel_reason(flow.id))
        return draft, "late"
    deadline = deadline_of(condition_of(flow), waiter.leaf)
    if deadline is not None and reply.arrived_us >= deadline:
        timed_out = Draft(flow, WORKER, now)
        pass_time(timed_out, now)
        return timed_out, None
    source = EndedBy(cause="event", pair=waiter.pair, event_id=reply.event_id or None)
    return draft, satisfy(draft, waiter.leaf, reply.payload, source)


def _unawaited(reply: Reply, view: View, now: Micros, policy: Policy, changes: tuple[FlowChange, ...]) -> Decision:
    """Decide a reply that nobody waits for at the moment.

    It is late where its flow has ended, else it is held (R4, R7).
    """
    ended = {change.flow.id: change.flow for change in changes}
    target = reply.flow_id or view.last_flow((reply.topic, reply.correlation_id))
    flow = ended.get(target or "") or readable_flow(view, target)
    if flow is not None and (flow.terminal or flow.cancel_requested):
        return Decision(outcome="late", flow=flow, changes=changes)
    if not reply.hold:
        return Decision(outcome="unmatched", flow=flow, changes=changes)
    unbound = policy.topics(reply.topic, None) if policy.topics is not None else None
    if unbound is not None:  # named by a resume message; no flow may wait on it, so nobody would ever come
        return Decision(outcome="rejected", changes=changes, dead=(unbound.code, unbound.message))
    held = HeldReply(
        topic=reply.topic,
        correlation_id=reply.correlation_id,
        event_id=reply.event_id,
        payload=reply.payload,
        arrived_us=reply.arrived_us,
        expires_us=now + policy.held_ttl_us,
        key=reply.key,
        flow_id=reply.flow_id,
        trace=reply.trace,
        tenant=reply.tenant,
    )
    return Decision(outcome="held", changes=changes, hold=held, displaced=displace(held, view.holdings, policy))
