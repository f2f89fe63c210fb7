"""Every interleaving of what can end a wait, up to six stimuli after the parking, checked against the laws (SEMANTICS R4 to R10).

Two alphabets. The first is the plain one: a reply, the same reply again, the timeout (time passes beyond the deadline and the tick comes),
cancel, manual resume, parking again. The second pulls the timeout apart: time passes but the tick is late, and a reply that the broker
had in time is decided only afterwards. Every history is walked to its end, refusals and repeats included.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple, cast

import msgspec
import pytest

from nats_taskflow.engine.batch import BatchDecision
from nats_taskflow.engine.submission import Submission, SubmissionOutcome
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.fold import fold
from nats_taskflow.flow.held_quota import HeldCounts
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import Flow, FlowEvent
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import CancelFlow, DeadlinePassed, ParkFlow, Reply, ResumeFlow, StartFlow, Stimulus
from nats_taskflow.flow.view import World
from nats_taskflow.store.records import InboxKey, InboxRow, Loaded
from nats_taskflow.units import SECOND
from nats_taskflow.wire.inbound import Identity

FLOW, PAIR = "f", ("t", "c")
NOW = 1_800_000_000 * SECOND
PATIENCE = 30 * SECOND
POLICY = Policy()
ENDINGS = {EventKind.RESUMED, EventKind.FAILED, EventKind.CANCELLED}
PLAIN = ("reply", "duplicate", "timeout", "cancel", "resume", "park")
LATE = ("reply", "delayed", "timeout", "overdue", "cancel", "resume", "park")
LENGTHS = {PLAIN: 6, LATE: 5}
LASTS = {"timeout": PATIENCE, "overdue": PATIENCE - SECOND}
"""How much time passes before a letter, a second otherwise. A reply right after a first `overdue` arrives exactly at the deadline."""

pytestmark = [pytest.mark.xdist_group("interleavings"), pytest.mark.timeout(600)]  # every interleaving is looked at in the first test


class State(NamedTuple):
    """A world, what was taken in, the time, and what the laws need of the past."""

    world: World
    inbox: dict[InboxKey, InboxRow]
    now: int
    steps: tuple[str, ...] = ()
    folded: Flow | None = None
    open: int | None = None
    generations: tuple[int, ...] = ()
    used: tuple[str, ...] = ()
    last: Reply | None = None

    @property
    def flow(self) -> Flow:
        return self.world.flows[FLOW]

    @property
    def deadline(self) -> int | None:
        return self.flow.parked_us + PATIENCE if self.flow.parked_us is not None else None


class Step(NamedTuple):
    """One step of one history. `events` is what it wrote into the journal."""

    before: State
    name: str
    what: Stimulus
    outcome: SubmissionOutcome
    events: tuple[FlowEvent, ...]
    after: State


def arriving(state: State, at: int) -> Reply:
    name = f"e{len(state.steps)}"
    return Reply(topic=PAIR[0], correlation_id=PAIR[1], payload={"n": name}, event_id=name, arrived_us=at, key=name)


def parking(on_timeout: str) -> ParkFlow:
    wait = {"kind": "external_event", "topic": PAIR[0], "correlation_id": PAIR[1], "timeout": "30s", "on_timeout": on_timeout}
    return ParkFlow(flow_id=FLOW, condition=wait, nonce="nonce")


def stimulus(name: str, state: State, now: int, on_timeout: str) -> Stimulus | None:
    """Return what the letter stands for at `now`; None where it makes no sense, or only lets time pass."""
    match name:
        case "reply":
            return arriving(state, now)
        case "delayed":
            return arriving(state, state.flow.parked_us + 1) if state.flow.parked_us is not None else None
        case "duplicate":
            return state.last
        case "timeout":
            return DeadlinePassed(flow_id=FLOW, wait_id=state.flow.wait_id or 0, at_us=now)
        case "cancel":
            return CancelFlow(flow_id=FLOW)
        case "resume":
            return ResumeFlow(flow_id=FLOW)
        case "park":
            return parking(on_timeout)
        case _:
            return None


def copied(world: World) -> World:
    """Copy what decisions change; the values are frozen."""
    new = World()
    new.flows, new.last = dict(world.flows), dict(world.last)
    for pair, waiters in world.waiting.items():
        new.waiting[pair] = list(waiters)
    for pair, held in world.replies.items():
        new.replies[pair] = list(held)
    for flow_id, pairs in world.pairs.items():
        new.pairs[flow_id] = set(pairs)
    new.usages = copy.deepcopy(world.usages)
    had = world.holdings
    topics = {tenant: dict(counts) for tenant, counts in had.topics.items()}
    new.holdings = HeldCounts(had.total, dict(had.of), topics, {sender: list(first) for sender, first in had.first.items()})
    return new


def carried_out(before: State, name: str, what: Stimulus, now: int) -> Step:
    """Decide one stimulus as the engine does, on copies."""
    world, inbox = copied(before.world), dict(before.inbox)
    deciding = BatchDecision(Loaded(world=world, inbox=inbox), now, POLICY)
    identity = Identity("reply", what.key, msgspec.json.encode(what.payload)) if isinstance(what, Reply) else None
    nobody = cast("asyncio.Future[Any]", None)
    deciding.decide(Submission(what=what, identity=identity, source="in", seq=None, done=nobody))
    batch = deciding.finish()
    events, folded, is_open = tuple(batch.events), before.folded, before.open
    generations, used = before.generations, before.used
    for event in events:
        folded = fold(folded, event)
        if event.kind is EventKind.WAITING:
            is_open, generations = event.revision, (*generations, event.revision)
        elif event.kind in ENDINGS:
            is_open = None
        if event.kind is EventKind.RESUMED and event.payload["cause"] == "event":
            used = (*used, str(event.cause))
    last = what if isinstance(what, Reply) else before.last
    after = State(world, inbox, now, (*before.steps, name), folded, is_open, generations, used, last)
    return Step(before, name, what, deciding.outcomes[0], events, after)


def parked(on_timeout: str) -> State:
    """Return the state after the parking."""
    start = StartFlow(flow_id=FLOW, controller_id="k", goal="g", owner_session_key="o")
    state = carried_out(State(World(), {}, NOW), "start", start, NOW).after
    return carried_out(state, "park", parking(on_timeout), NOW).after


def explored(alphabet: tuple[str, ...], length: int, on_timeout: str) -> Iterator[Step | None]:
    """Yield the last step of every history of at most `length` letters after the parking; None where only time passed."""
    pending = [parked(on_timeout)]
    first = len(pending[0].steps)
    while pending:
        before = pending.pop()
        for name in alphabet:
            now = before.now + LASTS.get(name, SECOND)
            idle = before._replace(now=now, steps=(*before.steps, name))
            what = stimulus(name, before, now, on_timeout)
            step = stepped(before, name, what, idle) if what is not None else None
            yield step
            after = step.after if step is not None else idle
            if len(after.steps) - first < length:
                pending.append(after)


def stepped(before: State, name: str, what: Stimulus, idle: State) -> Step:
    """Decide one stimulus; the world is copied only where something comes of it, which asking first changes nothing about."""
    if not isinstance(what, Reply):
        decided = decide(what, before.world, idle.now, POLICY)
        if isinstance(decided, FlowError):
            return Step(before, name, what, SubmissionOutcome(name="rejected", error=decided), (), idle)
        if not decided.changes:
            return Step(before, name, what, SubmissionOutcome(name=decided.outcome), (), idle)
    return carried_out(before, name, what, idle.now)


Law = Callable[[Step], bool]
LAWS: dict[str, Law] = {}


def law(check: Law) -> Law:
    LAWS[check.__name__] = check
    return check


@law
def each_generation_ends_at_most_once(step: Step) -> bool:
    """SEMANTICS R8, R10: what ends a wait ends the one that is open, and there is one winner."""
    is_open = step.before.open
    for event in step.events:
        if event.kind is EventKind.WAITING:
            if is_open is not None:
                return False
            is_open = event.revision
        elif event.kind in ENDINGS and event.previous_status is FlowStatus.WAITING:
            if is_open is None:
                return False
            is_open = None
    return is_open == step.after.flow.wait_id


@law
def a_reply_is_used_at_most_once(step: Step) -> bool:
    """SEMANTICS R5."""
    return len(set(step.after.used)) == len(step.after.used)


@law
def a_repeat_changes_nothing_and_is_told_so(step: Step) -> bool:
    """SEMANTICS R5."""
    if step.name != "duplicate":
        return True
    return step.outcome.name == "duplicate" and not step.events and vars(step.after.world) == vars(step.before.world)


@law
def a_stale_generation_never_touches_a_newer_wait(step: Step) -> bool:
    """SEMANTICS R8."""
    state = step.after
    if state.world is step.before.world:
        return True  # looked at when that world came about
    for older in (*state.generations, 0, 10**6):
        if older == state.flow.wait_id:
            continue
        passed = decide(DeadlinePassed(flow_id=FLOW, wait_id=older, at_us=state.now + 10 * PATIENCE), state.world, state.now, POLICY)
        if not isinstance(passed, Decision) or passed.changes or passed.outcome != "unmatched":
            return False
        if not isinstance(decide(ResumeFlow(flow_id=FLOW, wait_id=older), state.world, state.now, POLICY), FlowError):
            return False
    return True


@law
def no_held_reply_lies_beside_an_open_matching_wait(step: Step) -> bool:
    """SEMANTICS R4."""
    return not (any(step.after.world.waiters(PAIR)) and any(step.after.world.held(PAIR)))


@law
def the_wait_is_open_exactly_while_the_flow_waits(step: Step) -> bool:
    """SEMANTICS R10: a closed wait consumes nothing."""
    waiters = list(step.after.world.waiters(PAIR))
    return [w.wait_id for w in waiters] == ([step.after.flow.wait_id] if step.after.flow.wait_id is not None else [])


@law
def folding_the_journal_gives_the_row(step: Step) -> bool:
    """SEMANTICS 1."""
    return step.after.folded == step.after.flow


@law
def a_reply_wins_exactly_if_the_broker_had_it_before_the_deadline(step: Step) -> bool:
    """SEMANTICS R9: whatever the clock says when it is decided, as long as nothing was committed earlier."""
    if step.name not in {"reply", "delayed"} or step.before.deadline is None:
        return True
    assert isinstance(step.what, Reply)
    won = step.what.event_id in step.after.used
    return won == (step.what.arrived_us < step.before.deadline) == (step.outcome.name == "resumed")


@law
def a_reply_that_loses_is_held_or_late(step: Step) -> bool:
    """SEMANTICS R4, R7."""
    if step.name not in {"reply", "delayed"} or step.outcome.name == "resumed":
        return True
    ended = step.after.flow.terminal
    held = step.after.world.replies[PAIR]
    return step.outcome.name == ("late" if ended else "held") and (step.what in [as_reply(h) for h in held]) != ended


@law
def parking_takes_the_oldest_held_reply(step: Step) -> bool:
    """SEMANTICS R4: the journal shows `waiting`, then `resumed`."""
    if step.name != "park" or step.outcome.error is not None:
        return True
    held = sorted(step.before.world.replies[PAIR], key=lambda reply: reply.arrived_us)
    kinds = [event.kind for event in step.events]
    if not held:
        return kinds == [EventKind.WAITING]
    return kinds == [EventKind.WAITING, EventKind.RESUMED] and step.events[1].cause == held[0].event_id


@law
def the_timeout_does_what_the_wait_says(step: Step) -> bool:
    """SEMANTICS 3: resume, fail or cancel; and only if nothing came first."""
    if step.name != "timeout" or step.before.deadline is None:
        return True
    wait = step.before.flow.wait_json
    assert wait is not None
    flow = step.after.flow
    match wait.get("on_timeout", "resume"):
        case "fail":
            return flow.status is FlowStatus.FAILED and flow.state_json["failure"]["reason"] == "wait timed out"
        case "cancel":
            return flow.status is FlowStatus.CANCELLED
        case _:
            told = flow.state_json["resume_event"], flow.state_json["resume_meta"]["cause"]
            return flow.status is FlowStatus.RUNNING and told == ({"timed_out": True}, "timeout")


@law
def what_is_refused_leaves_no_trace(step: Step) -> bool:
    """SEMANTICS 2."""
    return step.outcome.error is None or (not step.events and vars(step.after.world) == vars(step.before.world))


def as_reply(held: Any) -> Reply:
    """Return the reply that is held."""
    names = ("topic", "correlation_id", "payload", "event_id", "arrived_us", "key")
    return Reply(**{name: getattr(held, name) for name in names})


class Findings(NamedTuple):
    """What a walk through all histories found."""

    broken: dict[str, list[str]]
    counts: Counter[str]


@pytest.fixture(scope="module")
def findings() -> Findings:
    broken: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for alphabet, on_timeout in product((PLAIN, LATE), ("resume", "fail", "cancel")):
        for step in explored(alphabet, LENGTHS[alphabet], on_timeout):
            counts["histories"] += 1
            if step is None:
                continue
            counts[step.outcome.name] += 1
            for name, holds in LAWS.items():
                if len(broken[name]) < 5 and not holds(step):
                    broken[name].append(f"on_timeout={on_timeout}: {' '.join(step.after.steps)} -> {step.outcome.name}")
    return Findings(broken, counts)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_holds_in_every_interleaving(findings: Findings, name: str) -> None:
    assert findings.broken[name] == []


def test_every_interleaving_was_looked_at(findings: Findings, record_property: Callable[[str, object], None]) -> None:
    counts = findings.counts
    record_property("histories", counts["histories"])
    assert counts["histories"] == 3 * sum(len(letters) ** n for letters, longest in LENGTHS.items() for n in range(1, longest + 1)), counts
    assert counts["histories"] == 226_779, counts
    for outcome in ("applied", "resumed", "held", "late", "duplicate", "rejected", "unmatched"):
        assert counts[outcome] > 0, counts
