"""Explain why a flow stands where it stands, in sentences with a fix to copy.

Pure: `circumstances` gathers what there is to know.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from nats_taskflow.flow.conditions import Composite, ExternalEvent, FlowEnds, Manual, Node, Timer, due_times, from_value, open_nodes
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, FlowEvent, HeldReply
from nats_taskflow.store.admin_port import ReceivedReply
from nats_taskflow.text import counted
from nats_taskflow.units import SECOND, Micros, format_duration, to_micros, to_the_second
from nats_taskflow.wire.admin_answers import Reason, SetAsideFlow

_ALIKE = 0.6
_SHOWN = 5


class Arrival(NamedTuple):
    """A reply that was taken in for a pair, and the number of its dead letter."""

    topic: str
    correlation_id: str
    reply: ReceivedReply
    letter: int | None


class Circumstances(msgspec.Struct, kw_only=True):
    """What bears on a flow.

    `last`: its newest journal entries; `held`: held replies that may be meant for it, by number.

    `arrivals`: replies taken in for what it waits for, or has waited for. `outgoing`: subject, tries and next try of the request to its
    delegate, while that is not sent.
    """

    now: Micros
    flow_id: str
    flow: Flow | None
    last: Sequence[FlowEvent] = ()
    set_aside: SetAsideFlow | None = None
    held: dict[int, HeldReply] = msgspec.field(default_factory=dict)
    arrivals: list[Arrival] = msgspec.field(default_factory=list)
    outgoing: tuple[str, int, Micros] | None = None


def reply_leaves(flow: Flow) -> list[ExternalEvent]:
    """Return the replies that a flow still waits for."""
    condition = from_value(flow.wait_json)
    if condition is None:
        return []
    nodes = open_nodes(condition, flow.progress or {})
    return [node.condition for node in nodes if isinstance(node.condition, ExternalEvent) and node.condition.correlation_id]


def explain(facts: Circumstances) -> list[Reason]:
    """Return the sentences, the most important first."""
    if facts.set_aside is not None:
        return [_aside(facts.set_aside)]
    flow = facts.flow
    assert flow is not None, "a flow that is not set aside can be read"
    if flow.terminal:
        return [_ended(flow, facts), *_came_after(flow, facts)]
    waits = flow.status is FlowStatus.WAITING
    reasons = list(_waiting(flow, facts) if waits else _not_waiting(flow, facts))
    if not flow.cancel_requested:
        return reasons
    how = "it goes to cancelled with the next tick" if waits else "its agent has to end it"
    fix = f"taskflow flow cancel {flow.id} --reason {shlex.quote('wind-down takes too long')}"
    first = Reason(kind="state", text=f"Cancellation was requested: {how}; only cancelling is possible now.", fix=fix)
    # What it waits for and what it last did is worth knowing. What would bring that about is refused now, and nothing else comes next.
    return [first, *(msgspec.structs.replace(reason, fix=None) for reason in reasons if reason.kind in ("waits", "state"))]


_AGENTS_FIXES = ("taskflow flow run ", "taskflow flow resume ", "taskflow flow cancel ", "taskflow flow history ", "taskflow why ")


def advise_agent(reasons: Sequence[Reason], agent: str, session: str) -> list[Reason]:
    """Return the sentences with the fixes that the flow's agent may carry out."""
    options = f" --agent {agent}" + (f" --session {shlex.quote(session)}" if session != "main" else "")
    return [msgspec.structs.replace(reason, fix=_agents_fix(reason.fix, options)) for reason in reasons]


def _agents_fix(fix: str | None, options: str) -> str | None:
    if fix is None or fix.startswith("taskflow reply "):
        return fix
    return fix + options if fix.startswith(_AGENTS_FIXES) else None


def _aside(aside: SetAsideFlow) -> Reason:
    """Say why the row cannot be read, and what to do."""
    text = f"Set aside: its stored row cannot be read ({aside.why}), so neither time nor replies reach it. Other flows go on."
    fix = f"taskflow flow release {aside.flow_id} --reason 'row repaired'"
    return Reason(
        kind="state", text=text + " Repair the row from a backup or start the version that wrote it, then release the flow.", fix=fix
    )


def _ended(flow: Flow, facts: Circumstances) -> Reason:
    """Say how the flow ended."""
    last = facts.last[-1] if facts.last else None
    by = f" by {last.actor}" if last is not None else ""
    reason = last.payload.get("reason") if last is not None else None
    because = f": {reason}" if reason else ""
    return Reason(
        kind="state", text=f"It has ended: {flow.status} {_ago(flow.updated_us, facts.now)}{by}{because}. Nothing changes it any more."
    )


def _not_waiting(flow: Flow, facts: Circumstances) -> Iterator[Reason]:
    """Say whose turn it is."""
    since = _ago(flow.updated_us, facts.now)
    if flow.status is FlowStatus.CREATED:
        text = f"Created {since} and held: it stays as it is until its agent runs it."
        yield Reason(kind="state", text=text, fix=f"taskflow flow run {flow.id}")
        return
    last = facts.last[-1] if facts.last else None
    did = f" ({last.kind.value.replace('_', ' ')} by {last.actor})" if last is not None else ""
    text = f"Running, so it waits for nothing: the turn is its controller's ({flow.controller_id}). Last change {since}{did}."
    yield Reason(kind="state", text=text, fix=f"taskflow flow history {flow.id}")
    for held in list(facts.held.values())[:_SHOWN]:
        waited = f"({held.topic}, {held.correlation_id}), which it waited for before,"
        text = f"A reply for {waited} came {_ago(held.arrived_us, facts.now)} and is held until the flow waits for it again."
        fix = f"taskflow held list --topic {shlex.quote(held.topic)} --correlation-id {shlex.quote(held.correlation_id)}"
        yield Reason(kind="near", text=text, fix=fix)


def _came_after(flow: Flow, facts: Circumstances) -> Iterator[Reason]:
    """Say which replies came for a flow when it had ended, and what became of them."""
    after = [arrival for arrival in facts.arrivals if arrival.reply.at_us >= flow.updated_us and arrival.reply.outcome not in _USED]
    for topic, correlation_id, reply, letter in sorted(after, key=lambda arrival: -arrival.reply.at_us)[:_SHOWN]:
        when = f"{_ago(reply.at_us, facts.now)}, {_for(reply.at_us - flow.updated_us)} after the end"
        place = "" if reply.source_seq is None else f"; it is message {reply.source_seq} of {reply.source}"
        became = _LATE if reply.outcome == "late" else _BECAUSE.get(reply.outcome, reply.outcome)
        fix = f"taskflow dlq show {letter}" if letter is not None else None
        if fix is None and reply.source_seq is not None:
            fix = f"nats stream get {shlex.quote(reply.source)} {reply.source_seq}"
        yield Reason(kind="near", text=f"A reply for ({topic}, {correlation_id}) came {when}, and was {became}{place}.", fix=fix)


_LATE = "late: recorded, and of no effect"
_USED = ("resumed", "progressed", "applied", "held", "duplicate")


def _waiting(flow: Flow, facts: Circumstances) -> Iterator[Reason]:
    """Say what is waited for, what came near, and what happens by itself."""
    condition = from_value(flow.wait_json)
    if condition is None:
        yield Reason(kind="waits", text="Waiting, but what for cannot be read; the next tick sets it aside.")
        return
    since = _for(facts.now - (flow.parked_us or facts.now))
    progress = flow.progress or {}
    nodes = [node for node in open_nodes(condition, progress) if node.leaf is not None]
    if isinstance(condition, Composite):
        total = sum(1 for key in progress if key.isdigit())
        kind = flow.wait_json["kind"]  # type: ignore[index]  # it waits
        yield Reason(kind="waits", text=f"Waiting {since} for a combination ({kind}); {counted(total, 'part')} came so far.")
    for node in nodes:
        yield _leaf(flow, node, since, facts)
    if facts.outgoing is not None:
        subject, tries, again = facts.outgoing
        tried = f"{counted(tries, 'try', 'tries')}, the next {_in(again, facts.now)}"
        text = f"The request to {subject} has not been sent yet: {tried}. Does anybody listen there?"
        yield Reason(kind="near", text=text)
    yield from _came_near(flow, nodes, facts)
    due = due_times(condition, progress)
    if due:
        yield _next(due[0], facts.now)
    elif any(not isinstance(node.condition, Timer) for node in nodes):
        yield Reason(kind="next", text="There is no deadline: it waits until the reply comes or somebody resumes it.")


def _leaf(flow: Flow, node: Node, since: str, facts: Circumstances) -> Reason:
    """Say what one part waits for, and how to bring it about by hand."""
    part = node.condition
    where = f'parked at step "{flow.current_step}", revision {flow.wait_id}'
    match part:
        case ExternalEvent(topic=topic, correlation_id=correlation_id):
            text = f"Waiting {since} for a reply on {topic} with correlation id {correlation_id} ({where})."
            return Reason(kind="waits", text=text, fix=f"taskflow reply {shlex.quote(topic)} {shlex.quote(correlation_id or '')} '{{}}'")
        case Manual(prompt=prompt, name=name):
            asks = f': "{prompt}"' if prompt else ""
            leaf = f" --leaf {shlex.quote(name or str(node.leaf))}" if node.number else ""
            text = f"Waiting {since} for a person{asks} ({where})."
            return Reason(kind="waits", text=text, fix=f"taskflow flow resume {flow.id}{leaf} --reason 'approved'")
        case FlowEnds(flow_id=awaited):
            text = f"Waiting {since} for flow {awaited} to end ({where})."
            return Reason(kind="waits", text=text, fix=f"taskflow why {awaited}")
        case Timer(at=datetime() as at):
            text = f"Waiting {since} for its timer at {to_the_second(to_micros(at))}, {_in(to_micros(at), facts.now)} ({where})."
            return Reason(kind="waits", text=text, fix=f"taskflow flow resume {flow.id} --reason 'not waiting for the timer'")
        case _:
            return Reason(kind="waits", text=f"Waiting {since} ({where}).")


def _came_near(flow: Flow, nodes: Sequence[Node], facts: Circumstances) -> Iterator[Reason]:
    """Say which replies could have been meant, and why they did not resume it."""
    leaves = [(node, node.condition) for node in nodes if isinstance(node.condition, ExternalEvent)]
    near = 0
    for number, held in facts.held.items():
        for node, leaf in leaves:
            text = _nearness(held, leaf, flow, facts.now)
            if text is None:
                continue
            named = f" --leaf {node.leaf}" if len(leaves) > 1 else ""
            fix = f"taskflow held match {number} {flow.id}{named} --reason 'meant for this flow'"
            near += 1
            yield Reason(kind="near", text=text, fix=fix)
            if near == _SHOWN:
                break
        if near == _SHOWN:
            break
    for topic, correlation_id, reply, letter in facts.arrivals[:_SHOWN]:
        if reply.outcome in ("resumed", "progressed", "applied", "held"):
            continue
        near += 1
        became = _BECAUSE.get(reply.outcome, reply.outcome)
        text = f"A reply for ({topic}, {correlation_id}) came {_ago(reply.at_us, facts.now)} and was {became}."
        yield Reason(kind="near", text=text, fix=f"taskflow dlq show {letter}" if letter is not None else None)
    if leaves and not near:
        yield Reason(kind="near", text="Nothing came near: no reply with this correlation id, on this topic or another, has been taken in.")


_BECAUSE = {
    "late": "late: the flow that waited for it then had ended",
    "flow_mismatch": "not taken: it names another flow (flow_mismatch)",
    "rejected": "rejected: its payload is not what the wait accepts",
    "dead": "of no use: it could not be read",
    "expired": "held until it expired: nobody waited for it in time",
    "conflict": "not taken: another payload came before under the same id (conflict)",
    "duplicate": "a repeat of one that was taken before",
}


def _nearness(held: HeldReply, leaf: ExternalEvent, flow: Flow, now: Micros) -> str | None:
    """Say how a held reply misses a wait.

    None where the two have nothing to do with each other.
    """
    awaited, when = leaf.correlation_id or "", _ago(held.arrived_us, now)
    if held.topic != leaf.topic and held.correlation_id == awaited:
        return f"A reply with this correlation id came {when}, but on {held.topic}; it is held."
    if held.topic != leaf.topic:
        return None
    if held.correlation_id == awaited:
        other = f" and names flow {held.flow_id}" if held.flow_id not in (None, flow.id) else ""
        return f"A reply for exactly this pair came {when}{other}; it is held, not taken."
    if _is_like(held.correlation_id.casefold(), awaited.casefold()):
        return f'A reply on this topic came {when} with a similar correlation id, "{held.correlation_id}"; ids match byte for byte.'
    return None


def _is_like(one: str, other: str) -> bool:
    """Return whether two ids share most of their beginning and end.

    Linear: both come from messages, and there are thousands.
    """
    shorter = min(len(one), len(other))
    beginning = next((at for at in range(shorter) if one[at] != other[at]), shorter)
    end = next((at for at in range(shorter - beginning) if one[-1 - at] != other[-1 - at]), shorter - beginning)
    return 2 * (beginning + end) >= _ALIKE * (len(one) + len(other))


def _next(due: tuple[Micros, Node], now: Micros) -> Reason:
    """Say what happens when time alone goes by."""
    at, node = due
    part = node.condition
    ahead = at > now
    if isinstance(part, Timer):
        fires = f"the timer fires {_in(at, now)}" if ahead else f"the timer was due {_ago(at, now)}, and fires with the next tick"
        return Reason(kind="next", text=f"Next: {fires}.")
    does = {"resume": "it goes on with resume_event.timed_out = true", "fail": "the flow fails (wait timed out)"}
    then = does.get(part.on_timeout, "the flow is cancelled (wait timed out)")
    when = f"the deadline passes {_in(at, now)}, then" if ahead else f"the deadline passed {_ago(at, now)}; with the next tick"
    return Reason(kind="next", text=f"Next: {when} {then}.")


def _for(us: Micros) -> str:
    return " ".join(format_duration(us // SECOND * SECOND).split()[:2]) if us >= SECOND else "a moment"


def _ago(at: Micros, now: Micros) -> str:
    return f"{_for(now - at)} ago"


def _in(at: Micros, now: Micros) -> str:
    return f"in {_for(at - now)}" if at > now else f"{_for(now - at)} ago"
