"""Every history of at most five stimuli, checked against the laws of SEMANTICS 2 to 4.

A refused stimulus leaves no trace, so what follows it is what follows without it: histories are explored along accepted stimuli only,
and each refusal is checked to have changed nothing. That covers every history, refusals included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from nats_taskflow.errors import AlreadyTerminal, CancelPending, FlowError
from nats_taskflow.flow.conditions import ExternalEvent, nodes, parse
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.fold import fold, fold_journal
from nats_taskflow.flow.lifecycle import NEXT, TERMINAL, EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import Flow, FlowEvent
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import (
    AdvanceFlow,
    CancelFlow,
    DeadlinePassed,
    FailFlow,
    FinishFlow,
    ObserveStep,
    ParkFlow,
    Reply,
    RequestCancel,
    ResumeFlow,
    RunFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND, rfc3339
from nats_taskflow.wire.journal import PAYLOADS

NOW = 1_800_000_000 * SECOND
POLICY = Policy()
DEPTH = 5
FLOW = "f"
PAIR = ("t", "c")


class History(NamedTuple):
    """A world after some stimuli, the journal that led there, and the time."""

    world: World
    journal: tuple[FlowEvent, ...]
    now: int
    steps: tuple[str, ...]


def external(**more: object) -> dict[str, object]:
    return {"kind": "external_event", "topic": PAIR[0], "correlation_id": PAIR[1], **more}


def park(condition: dict[str, object]) -> Callable[[History], Stimulus]:
    return lambda _: ParkFlow(flow_id=FLOW, condition=condition, nonce="nonce")


def timer(history: History) -> Stimulus:
    return ParkFlow(flow_id=FLOW, condition={"kind": "timer", "at": rfc3339(history.now + 10 * SECOND)}, nonce="nonce")


def time_passed(history: History) -> Stimulus:
    flow = history.world.flows.get(FLOW)
    return DeadlinePassed(flow_id=FLOW, wait_id=(flow.wait_id if flow else None) or 0, at_us=history.now)


def reply(history: History) -> Stimulus:
    name = f"e{len(history.steps)}"
    return Reply(topic=PAIR[0], correlation_id=PAIR[1], payload={"n": name}, event_id=name, arrived_us=history.now, key=name)


ALPHABET: dict[str, Callable[[History], Stimulus]] = {
    "start": lambda _: StartFlow(flow_id=FLOW, controller_id="k", goal="g", owner_session_key="o", minted=False),
    "hold": lambda _: StartFlow(flow_id=FLOW, controller_id="k", goal="g", owner_session_key="o", minted=False, hold=True),
    "run": lambda _: RunFlow(flow_id=FLOW),
    "advance": lambda h: AdvanceFlow(flow_id=FLOW, patch={f"k{len(h.steps)}": 1}, next_step="next"),
    "wait_manual": park({"kind": "manual"}),
    "wait_reply": park(external(timeout="30s", on_timeout="fail")),
    "wait_timer": timer,
    "wait_both": park({"kind": "all_of", "conditions": [external(), {"kind": "manual", "timeout": "50s"}]}),
    "resume": lambda _: ResumeFlow(flow_id=FLOW, patch={"by": "hand"}),
    "finish": lambda _: FinishFlow(flow_id=FLOW, final_state={"done": True}),
    "fail": lambda _: FailFlow(flow_id=FLOW, reason="broke"),
    "request_cancel": lambda _: RequestCancel(flow_id=FLOW),
    "cancel": lambda _: CancelFlow(flow_id=FLOW, reason="enough"),
    "observe": lambda _: ObserveStep(flow_id=FLOW, step_id="s", run_id="r", task="t", status=FlowStepStatus.RUNNING),
    "reply": reply,
    "tick": time_passed,
}


def explore(depth: int) -> Iterator[tuple[History, str, Decision | FlowError, History]]:
    """Yield every step of every history: before, the stimulus' name, what was decided, after."""
    pending = [History(World(), (), NOW, ())]
    while pending:
        before = pending.pop()
        for name, make in ALPHABET.items():
            now = before.now + 20 * SECOND
            timed = before._replace(now=now)
            decided = decide(make(timed), before.world, now, POLICY)
            if isinstance(decided, FlowError):
                yield before, name, decided, before
                continue
            world = copy.copy(before.world)
            vars(world).update({field: copy.copy(value) for field, value in vars(before.world).items()})
            world.waiting = copy.deepcopy(before.world.waiting)
            world.replies = copy.deepcopy(before.world.replies)
            world.pairs = copy.deepcopy(before.world.pairs)
            world.apply(decided)
            journal = before.journal + tuple(event for change in decided.changes for event in change.events)
            after = History(world, journal, now, (*before.steps, name))
            yield before, name, decided, after
            if len(after.steps) < depth:
                pending.append(after)


pytestmark = pytest.mark.xdist_group("histories")  # once, not in each process


@pytest.fixture(scope="module")
def steps() -> list[tuple[History, str, Decision | FlowError, History]]:
    return list(explore(DEPTH))


Steps = list[tuple[History, str, Decision | FlowError, History]]


def flow_of(history: History) -> Flow | None:
    return history.world.flows.get(FLOW)


def test_enough_histories_were_explored(steps: Steps) -> None:
    assert len(steps) > 30_000


def test_folding_the_journal_gives_exactly_the_row(steps: Steps) -> None:
    for _, _, _, after in steps:
        assert fold_journal(after.journal) == flow_of(after), after.steps


def test_the_journal_is_contiguous_and_counts_mutations(steps: Steps) -> None:
    for _, _, _, after in steps:
        assert [event.seq for event in after.journal] == list(range(1, len(after.journal) + 1)), after.steps
        counted = [event.revision for event in after.journal if event.kind is not EventKind.STEP_OBSERVED]
        assert counted == list(range(len(counted))), after.steps


def test_every_entry_has_the_payload_that_is_published_of_its_kind(steps: Steps) -> None:
    """CONTRACT 4: the schemas type it."""
    seen = {(event.kind, frozenset(event.payload)): event for _, _, _, after in steps for event in after.journal}
    for (kind, keys), event in seen.items():
        msgspec.convert(event.payload, PAYLOADS[kind])
        assert keys <= set(PAYLOADS[kind].__struct_fields__), kind


def test_only_edges_of_the_table_are_taken(steps: Steps) -> None:
    for _, _, _, after in steps:
        for event in after.journal:
            if event.previous_status is None:
                assert event.kind is EventKind.CREATED
            elif event.status is not event.previous_status:
                assert event.status in NEXT[event.previous_status], after.steps


def test_nothing_but_an_observed_run_changes_a_terminal_flow(steps: Steps) -> None:
    for before, name, decided, after in steps:
        flow = flow_of(before)
        if flow is not None and flow.status in TERMINAL and name == "observe":
            assert flow_of(after) == replace(flow, seq=flow.seq + 1), before.steps
        elif flow is not None and flow.status in TERMINAL:
            assert flow_of(after) == flow, (before.steps, name)
            if name not in {"start", "hold", "reply", "tick"}:
                assert isinstance(decided, AlreadyTerminal), (before.steps, name)


def test_a_cancel_intent_is_sticky_and_leaves_only_cancelled(steps: Steps) -> None:
    for before, name, decided, after in steps:
        flow, then = flow_of(before), flow_of(after)
        if flow is None or not flow.cancel_requested or flow.terminal:
            continue
        assert then is not None
        assert then.cancel_requested
        assert then.status in {flow.status, FlowStatus.CANCELLED}, (before.steps, name)
        if name in {"run", "advance", "wait_manual", "resume", "finish", "fail"}:
            assert isinstance(decided, CancelPending), (before.steps, name)
        if name == "tick" and flow.status is FlowStatus.WAITING:
            assert then.status is FlowStatus.CANCELLED, before.steps


def test_a_refused_operation_leaves_no_trace(steps: Steps) -> None:
    refused = 0
    for before, _, decided, after in steps:
        if isinstance(decided, FlowError):
            refused += 1
            assert after is before
    assert refused > 15_000


def test_deciding_changes_nothing_by_itself() -> None:
    for before, name, _, _ in explore(3):
        seen = copy.deepcopy(vars(before.world))
        decide(ALPHABET[name](before), before.world, before.now, POLICY)
        assert vars(before.world) == seen, (before.steps, name)


def test_updated_at_never_decreases_even_when_the_clock_does() -> None:
    for before, name, _, _ in explore(3):
        decided = decide(ALPHABET[name](before), before.world, before.now - 3600 * SECOND, POLICY)
        flow = flow_of(before)
        if isinstance(decided, Decision) and flow is not None:
            assert all(change.flow.updated_us >= flow.updated_us for change in decided.changes), (before.steps, name)


def test_a_flow_has_a_wait_exactly_while_it_waits(steps: Steps) -> None:
    for _, _, _, after in steps:
        flow = flow_of(after)
        waiting = flow is not None and flow.status is FlowStatus.WAITING
        assert waiting == (flow is not None and flow.wait_json is not None), after.steps


def test_a_leaf_waits_for_a_reply_exactly_until_it_has_one(steps: Steps) -> None:
    """SEMANTICS R10 and R11: what is open is what the wait names, without what was satisfied, also in the very parking."""
    progressed = 0
    for _, _, _, after in steps:
        flow, wanted = flow_of(after), []
        if flow is not None and flow.wait_json is not None:
            leaves = [node for node in nodes(parse(flow.wait_json)) if isinstance(node.condition, ExternalEvent)]
            wanted = [(flow.id, flow.wait_id, node.leaf) for node in leaves if str(node.leaf) not in (flow.progress or {})]
            progressed += bool(flow.progress)
        assert [(one.flow_id, one.wait_id, one.leaf) for one in after.world.waiters(PAIR)] == wanted, after.steps
    assert progressed > 100


def test_each_generation_ends_at_most_once(steps: Steps) -> None:
    for _, _, _, after in steps:
        kinds = [event.kind for event in after.journal]
        assert kinds.count(EventKind.RESUMED) <= kinds.count(EventKind.WAITING), after.steps


def test_a_reply_is_never_used_twice(steps: Steps) -> None:
    """SEMANTICS R10 and I-15: neither for two waits nor for two leaves of one; a composite's end repeats its last leaf's cause."""
    for _, _, _, after in steps:
        by_reply = [event for event in after.journal if event.actor == f"topic:{PAIR[0]}"]
        used = [event.cause for event in by_reply if event.kind is EventKind.RESUMED]
        progress = [event.cause for event in by_reply if event.kind is EventKind.WAIT_PROGRESSED]
        assert len(used) == len(set(used)), after.steps
        assert len(progress) == len(set(progress)), after.steps


def test_no_reply_and_matching_wait_are_left_beside_each_other(steps: Steps) -> None:
    for _, _, _, after in steps:
        waiters, held = list(after.world.waiters(PAIR)), list(after.world.held(PAIR))
        assert not (waiters and held), after.steps


def test_fold_is_deterministic_over_prefixes(steps: Steps) -> None:
    for _, _, _, after in steps[:5000]:
        flow: Flow | None = None
        for event in after.journal:
            flow = fold(flow, event)
        assert flow == flow_of(after)
