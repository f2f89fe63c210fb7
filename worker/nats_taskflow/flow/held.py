"""Act on a held reply by hand: give it to another flow, or let it expire now."""

from __future__ import annotations

from nats_taskflow.errors import Conflict, FlowError, IllegalTransition, InvalidRequest, NotFound, RevisionMismatch
from nats_taskflow.flow.conditions import ExternalEvent, leaf_at, open_nodes
from nats_taskflow.flow.decision import Decision, Draft, MatchedHeld, View
from nats_taskflow.flow.end import EndedBy, condition_of, satisfy
from nats_taskflow.flow.held_quota import DisplacedReply
from nats_taskflow.flow.model import Flow, Pair
from nats_taskflow.flow.payload_check import payload_refusal
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import ExpireHeld, MatchHeld
from nats_taskflow.units import Micros


def match_held(command: MatchHeld, view: View, now: Micros, policy: Policy) -> Decision | FlowError:
    """Satisfy an open leaf of a flow with a held reply, as if it had come for it.

    The same transaction uses the reply up.
    """
    held = view.held_by_key(command.key)
    if held is None:
        return _gone(command.key)
    flow = view.flow(command.flow_id)
    if flow is None:
        return NotFound(f"there is no flow {command.flow_id}", flow_id=command.flow_id)
    if command.expected_revision is not None and command.expected_revision != flow.revision:
        message = f"flow {flow.id} is at revision {flow.revision}, not {command.expected_revision}: read it again"
        return RevisionMismatch(message, expected=command.expected_revision, actual=flow.revision)
    if flow.wait_json is None or flow.cancel_requested:
        doing = "being cancelled" if flow.cancel_requested and not flow.terminal else flow.status.value
        return IllegalTransition(f"flow {flow.id} waits for no reply: it is {doing}", flow_id=flow.id, status=flow.status.value)
    leaf = _leaf(command, flow)
    if isinstance(leaf, FlowError):
        return leaf
    refusal = payload_refusal(condition_of(flow), flow, leaf, held.payload, policy)
    if refusal is not None:
        return Conflict(f"the held reply cannot resume flow {flow.id}: {refusal[1]}", flow_id=flow.id)
    draft = Draft(flow, command.caller, now)
    source = EndedBy(cause="event", pair=_pair_at(flow, leaf), event_id=held.event_id or None, reason=command.reason, matched=held.pair)
    outcome = satisfy(draft, leaf, held.payload, source)
    return Decision(outcome=outcome, flow=draft.flow, changes=(draft.change(),), taken=(MatchedHeld(held, outcome),))


def expire_held(command: ExpireHeld, view: View) -> Decision | FlowError:
    """Move a held reply to the dead letters now."""
    held = view.held_by_key(command.key)
    if held is None:
        return _gone(command.key)
    message = f"{command.caller.actor} let it expire before its time: {command.reason}"
    return Decision(outcome="applied", displaced=(DisplacedReply(held, message),))


def _leaf(command: MatchHeld, flow: Flow) -> int | FlowError:
    """Return the leaf that the command names, or the only one that waits for a reply."""
    open_parts = open_nodes(condition_of(flow), flow.progress or {})
    leaves = [node.leaf for node in open_parts if isinstance(node.condition, ExternalEvent) and node.leaf is not None]
    if command.leaf is not None:
        if command.leaf not in leaves:
            return InvalidRequest(f"leaf {command.leaf} of flow {flow.id} waits for no reply; these do: {leaves}", path="/leaf")
        return command.leaf
    if len(leaves) != 1:
        message = f"flow {flow.id} waits for {len(leaves)} replies: name the leaf" if leaves else f"flow {flow.id} waits for no reply"
        return InvalidRequest(message, path="/leaf", leaves=leaves)
    return leaves[0]


def _pair_at(flow: Flow, leaf: int) -> Pair:
    # The flow's agent sees the reply that it expects. The journal has the one that came.
    part = leaf_at(condition_of(flow), leaf)
    assert isinstance(part, ExternalEvent), "the leaf waits for a reply"
    return part.topic, part.correlation_id or ""


def _gone(key: str) -> NotFound:
    topic, _, correlation_id = key.partition("\n")
    return NotFound(f"no reply of ({topic}, {correlation_id.partition(chr(10))[0]}) is held under this number any more")
