"""Answer one manual leaf of a composite wait: approvals that come one by one (SEMANTICS 3, R11)."""

from __future__ import annotations

from nats_taskflow.errors import FlowError, IllegalTransition, InvalidRequest, TooLarge
from nats_taskflow.flow.conditions import Manual, WaitCondition, nodes, open_nodes
from nats_taskflow.flow.decision import Decision, Draft
from nats_taskflow.flow.end import Source, condition_of, satisfy
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.payload_check import unfit
from nats_taskflow.flow.stimuli import Policy, ResumeFlow
from nats_taskflow.units import Micros


def answer(command: ResumeFlow, flow: Flow, now: Micros, policy: Policy) -> Decision | FlowError:
    """Satisfy the manual leaf that `command.leaf` names by number or name; its payload is the command's patch."""
    condition = condition_of(flow)
    leaf = _named(condition, command.leaf)
    if leaf is None:
        return InvalidRequest(f"the wait of flow {flow.id} has no manual leaf {command.leaf!r}", path="/leaf", leaf=command.leaf)
    if all(node.leaf != leaf for node in open_nodes(condition, flow.progress or {})):
        return IllegalTransition(f"leaf {command.leaf!r} of flow {flow.id} is answered already, or not needed any more", leaf=command.leaf)
    flaw = unfit(condition, flow, leaf, command.patch, policy)
    if flaw is not None:
        return TooLarge(flaw[1], path="/patch")
    draft = Draft(flow, command.caller, now)
    satisfy(draft, leaf, command.patch, Source(cause="manual", reason=command.reason))
    return Decision(outcome="applied", flow=draft.flow, changes=(draft.change(),))


def _named(condition: WaitCondition, leaf: int | str | None) -> int | None:
    """Return the number of the manual leaf with this number or name."""
    for node in nodes(condition):
        if isinstance(node.condition, Manual) and leaf in (node.leaf, node.condition.name):
            return node.leaf
    return None
