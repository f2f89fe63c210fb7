"""The engine against a model: any order of commands, replies, time, crashes and redeliveries (SEMANTICS 1 to 6, R1 to R14).

The real `Engine` and `SqliteFlowStore` run on a virtual clock; `tests.modelled` says what has to come out. After every rule the whole
database is compared with the model. `TASKFLOW_TESTS=nightly` looks at ten times as many and longer examples, other ones each time.
"""

from __future__ import annotations

import asyncio
import copy
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome
from nats_taskflow.flow.fold import fold, fold_journal
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import (
    AdvanceFlow,
    Caller,
    CancelFlow,
    DeadlinePassed,
    FailFlow,
    FinishFlow,
    ParkFlow,
    Reply,
    RequestCancel,
    ResumeFlow,
    RunFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.store.port import Transaction, Work
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.testing.database import InlineStore, Killed, fresh
from nats_taskflow.units import SECOND, rfc3339
from nats_taskflow.wire.inbound import Identity
from tests.modelled import Entry, Model
from tests.running import VirtualClock
from tests.tiers import SIZE, Tests, head

LONG = SIZE is Tests.NIGHTLY
SHARE = 4 if SIZE is Tests.QUICK else 1
"""Of the examples, the part that a run plays."""
TTL = 90 * SECOND
TOPIC = "t"
IDS = ("a", "b", "c")
OWNERS = ("agent:kate:session:main", "agent:bob:session:main")
T = TypeVar("T")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 240)]
loop = asyncio.new_event_loop()


def accepts(_: dict[str, Any], payload: Any) -> tuple[str, str] | None:
    return None if payload == "ok" else ("not_accepted", "it is not ok")


OPEN_FLOWS = 3
POLICY = Policy(held_ttl_us=TTL, accepts=accepts, schema_flaw=lambda _: None, max_open_flows=OPEN_FLOWS)

# What waits look like. Times are seconds from the parking, flows are numbers: both are filled in when a flow parks.
bounds: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"within": st.sampled_from([1, 5, 20, 60]), "on_timeout": st.sampled_from(["resume", "resume", "fail", "cancel"])}
    ),
)
events = st.builds(
    lambda correlation_id, mode, more, bound: {
        "kind": "external_event",
        "topic": TOPIC,
        "correlation_id": correlation_id,
        "mode": mode,
        **more,
        **bound,
    },
    st.sampled_from(IDS),
    st.sampled_from(["one", "one", "one", "all"]),
    st.sampled_from([{}, {}, {"accept": {}}]),
    bounds,
)
leaves = st.one_of(
    events,
    events,
    st.builds(lambda bound: {"kind": "manual", **bound}, bounds),
    st.builds(lambda within: {"kind": "timer", "within": within}, st.sampled_from([0, 1, 5, 20, 60])),
    st.builds(lambda flow, bound: {"kind": "flow", "flow": flow, **bound}, st.integers(0, 5), bounds),
)


def composed(below: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    parts = st.lists(below, min_size=1, max_size=3)
    plain = st.builds(
        lambda kind, conditions, bound: {"kind": kind, "conditions": conditions, **bound},
        st.sampled_from(["any_of", "all_of"]),
        parts,
        bounds,
    )
    some = st.builds(
        lambda conditions, count: {"kind": "at_least", "conditions": conditions, "count": min(count, len(conditions))},
        parts,
        st.integers(1, 3),
    )
    return st.one_of(plain, some)


several = composed(st.one_of(leaves, composed(leaves)))
conditions = st.one_of(events, leaves, composed(leaves), several)
flows = st.integers(0, 5)
revisions = st.sampled_from([None, None, None, None, None, "right", "wrong"])
REPEATS = ("redelivered", "redelivered", "command repeated", "reply repeated", "reply with another payload")
CHORES = ("kill", "kill", "kill after commit", "restart", "expire", "prune", "older deadline")
COMMANDS = ("run", "advance", "resume", "resume", "finish", "fail", "cancel", "cancel", "request_cancel")


class Sent(msgspec.Struct):
    """A message that was sent, and what came of it."""

    what: Stimulus
    identity: Identity
    seq: int
    result: bytes
    entry: Any


class Machine(RuleBasedStateMachine):
    """Drives the engine and the model side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.model = Model(TTL, OPEN_FLOWS)
        self.model.now = self.clock.us
        self.seq = 0
        self.names: list[str] = []
        self.sent: list[Sent] = []
        self.kill: list[int | None] = []
        self.folded: dict[str, Flow] = {}
        self.last_event = 0
        self.new()
        self.open()

    def run(self, it: Coroutine[Any, Any, T]) -> T:
        return loop.run_until_complete(it)

    # The database, and how a worker dies. `tests.service.test_state_machine_on_disk` does these on files.

    def new(self) -> None:
        """Make an empty database."""
        self.database = self.run(fresh())

    def open(self) -> None:
        """Open the database as a new worker does."""
        self.store: SqliteFlowStore
        self.store, self.inline = self.run(InlineStore.on(self.database))
        self.engine = Engine(self.store, clock=self.clock, policy=POLICY)

    def arm(self, fuse: int | None) -> None:
        """Let the next transaction kill the worker: in its n-th statement, or for None right after its commit."""
        self.inline.fuse, self.inline.after_commit = fuse, fuse is None

    def disarm(self) -> None:
        """The transaction was shorter than the fuse."""
        self.inline.fuse, self.inline.after_commit = None, False

    def written(self) -> tuple[object, ...]:
        """Return what a commit that decides something has moved."""
        row: tuple[object, ...] = self.database.execute(
            "SELECT (SELECT max(n) FROM inbox), (SELECT max(n) FROM flow_events), "
            "(SELECT max(n) FROM held), (SELECT max(n) FROM dead_letters)"
        ).fetchone()
        return row

    # Submitting.

    async def _submitted(self, submit: Callable[[], list[asyncio.Future[SubmissionOutcome]]]) -> list[SubmissionOutcome]:
        futures = submit()
        while self.engine.queued:
            await self.engine._step()
            await asyncio.sleep(0)  # what is asked about a schema is found out beside it
        return [future.result() for future in futures]

    def carried_out(
        self, submit: Callable[[], list[asyncio.Future[SubmissionOutcome]]], expected: Callable[[], None]
    ) -> list[SubmissionOutcome]:
        """Carry submissions out, and the model with them; where a kill is due, kill the worker, start the next and submit again."""
        committed = False
        if self.kill:
            fuse = self.kill.pop()
            before = self.written()
            self.arm(fuse)
            try:
                outcomes = self.run(self._submitted(submit))
            except Killed:
                self.open()
                committed = fuse is None and self.written() != before  # the first commit is empty where a schema is asked about
                if committed:
                    expected()
                self.compared()
            else:
                self.disarm()
                expected()
                return outcomes
        outcomes = self.run(self._submitted(submit))
        if not committed:
            expected()
        return outcomes

    def told(self, what: Stimulus, identity: Identity, model: Callable[[], str | None]) -> None:
        """Send a command; its outcome has to be the model's."""
        self.seq += 1
        seq, refusals, entry = self.seq, [], []

        def expected() -> None:
            refusals.append(model())
            self.model.settle()
            entry.append(self.model.taken(Entry("rejected" if refusals[0] else "applied")))

        (outcome,) = self.carried_out(lambda: [self.engine.submit(what, identity, source="IN", seq=seq, raw=RAW)], expected)
        assert outcome.name == entry[0].outcome, (what, outcome)
        told = msgspec.json.decode(outcome.result)
        assert (told["error"]["code"] if not told["ok"] else None) == refusals[0], (what, told)
        self.sent.append(Sent(what, identity, seq, outcome.result, entry[0]))

    def command_identity(self) -> Identity:
        return Identity("cmd:kate", f"c{self.seq}", b"body")

    def flow(self, number: int) -> str:
        return self.names[number % len(self.names)]

    def revision(self, flow_id: str, which: str | None) -> int | None:
        flow = self.model.flows.get(flow_id)
        return None if which is None or flow is None else flow.revision + (which == "wrong")

    # Rules: commands.

    @initialize(parents=st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=4))
    def some_families(self, parents: list[int | None]) -> None:
        for parent in parents:
            self.start(owner=OWNERS[0], parent=parent, hold=False)

    @precondition(lambda self: len(self.names) < 6)
    @rule(
        owner=st.sampled_from([*OWNERS[:1] * 5, OWNERS[1]]),
        parent=st.none() | flows | flows,
        hold=st.sampled_from([False, False, False, True]),
    )
    def start(self, owner: str, parent: int | None, hold: bool) -> None:
        flow_id = f"flow-{len(self.names)}"
        above = self.flow(parent) if parent is not None and self.names else None
        self.names.append(flow_id)
        about: dict[str, Any] = {"owner_session_key": owner, "parent_flow_id": above, "hold": hold}
        new = StartFlow(flow_id=flow_id, controller_id="k", goal="g", caller=Caller(actor="agent", owner=owner), **about)
        self.told(new, self.command_identity(), lambda: self.model.start(flow_id, owner, above, hold=hold))

    @rule(number=flows, verb=st.sampled_from(COMMANDS), which=revisions, cascade=st.booleans())
    def command(self, number: int, verb: str, which: str | None, cascade: bool) -> None:
        flow_id = self.flow(number)
        revision = self.revision(flow_id, which)
        about: dict[str, Any] = {"flow_id": flow_id, "expected_revision": revision}
        what: dict[str, Callable[[], Stimulus]] = {
            "run": lambda: RunFlow(**about),
            "advance": lambda: AdvanceFlow(patch={f"s{self.seq}": 1}, **about),
            "resume": lambda: ResumeFlow(patch={"by": "hand"}, **about),
            "finish": lambda: FinishFlow(final_state={"done": self.seq}, **about),
            "fail": lambda: FailFlow(reason="broke", **about),
            "cancel": lambda: CancelFlow(cascade=cascade, **about),
            "request_cancel": lambda: RequestCancel(**about),
        }
        self.told(what[verb](), self.command_identity(), lambda: self.model.command(verb, flow_id, revision, cascade=cascade))

    @precondition(lambda self: self.those("running"))
    @rule(number=flows, condition=conditions)
    def park(self, number: int, condition: dict[str, Any]) -> None:
        running = self.those("running")
        self._park(running[number % len(running)], condition)

    @precondition(lambda self: self.those("running"))
    @rule(number=flows, condition=several)
    def park_on_several(self, number: int, condition: dict[str, Any]) -> None:
        running = self.those("running")
        self._park(running[number % len(running)], condition)

    @rule(number=flows, condition=conditions)
    def park_whatever_it_does(self, number: int, condition: dict[str, Any]) -> None:
        self._park(self.flow(number), condition)

    def those(self, status: str) -> list[str]:
        """List the flows in a status."""
        return [flow.id for flow in self.model.flows.values() if flow.status == status]

    def _park(self, flow_id: str, condition: dict[str, Any]) -> None:
        asked, modelled = self.filled_in(condition)
        what = ParkFlow(flow_id=flow_id, condition=asked, nonce="nonce")
        self.told(what, self.command_identity(), lambda: self.model.park(what.flow_id, modelled))

    def filled_in(self, condition: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the condition as it is sent, and as the model takes it."""
        asked = copy.deepcopy(condition)
        modelled = copy.deepcopy(condition)
        for real, told in zip(_walk(asked), _walk(modelled), strict=True):
            if "within" in real:
                told["due"] = self.clock.us + real.pop("within") * SECOND
                real["at" if real["kind"] == "timer" else "deadline"] = rfc3339(told["due"])
            if "flow" in real:
                real["flow_id"] = told["flow_id"] = self.flow(real.pop("flow"))
            if "accept" in told:
                told["accept"] = True
        return asked, modelled

    @precondition(lambda self: self.those("waiting"))
    @rule(number=flows, at=st.integers(0, 4), any_leaf=st.sampled_from([False, False, False, True]))
    def answer(self, number: int, at: int, any_leaf: bool) -> None:
        """Answer a manual leaf, if there is one."""
        waiting = self.those("waiting")
        flow_id = waiting[number % len(waiting)]
        manual = [part.leaf for part in self.model.flows[flow_id].parts if part.kind == "manual" and part.leaf is not None]
        leaf = at if any_leaf or not manual else manual[at % len(manual)]
        self.told(ResumeFlow(flow_id=flow_id, leaf=leaf), self.command_identity(), lambda: self.model.answer(flow_id, leaf))

    # Rules: replies.

    @rule(
        correlation_id=st.sampled_from(IDS),
        payload=st.sampled_from(["ok", "ok", "no"]),
        ago=st.sampled_from([0, 0, 5, 30]),
        only=st.none() | st.none() | flows,
    )
    def reply(self, correlation_id: str, payload: str, ago: int, only: int | None) -> None:
        flow_id = self.flow(only) if only is not None else None
        self.replied(correlation_id, payload, f"e{self.seq}", ago * SECOND, flow_id)

    @precondition(lambda self: self.awaited())
    @rule(number=flows, payload=st.sampled_from(["ok", "ok", "ok", "no"]), ago=st.sampled_from([0, 0, 5, 30]))
    def awaited_reply(self, number: int, payload: str, ago: int) -> None:
        self.replied(self.awaited()[number % len(self.awaited())], payload, f"e{self.seq}", ago * SECOND, None)

    @precondition(lambda self: self.awaited())
    @rule(number=flows)
    def fitting_reply(self, number: int) -> None:
        self.replied(self.awaited()[number % len(self.awaited())], "ok", f"e{self.seq}", 0, None)

    def awaited(self) -> list[str]:
        """List the correlation ids that some flow waits for, or waited for in a wait that goes on."""
        opened = [o for o in self.model.opened if o.flow.wait_id == o.wait_id and o.part.kind == "external_event"]
        return [o.part.pair[1] for o in opened if o.part.pair is not None]

    def replied(self, correlation_id: str, payload: str, event_id: str, ago: int, only: str | None) -> None:
        self.seq += 1
        seq, arrived = self.seq, self.clock.us - ago
        key = f"{TOPIC}\n{correlation_id}\n{event_id}"
        what = Reply(
            topic=TOPIC, correlation_id=correlation_id, payload=payload, event_id=event_id, arrived_us=arrived, key=key, flow_id=only
        )
        identity = Identity("reply", key, msgspec.json.encode([payload, only]))
        entries: list[Any] = []

        def expected() -> None:
            entries.append(self.model.reply((TOPIC, correlation_id), payload, arrived, only, key))
            self.model.settle()

        (outcome,) = self.carried_out(lambda: [self.engine.submit(what, identity, source="IN", seq=seq, raw=RAW)], expected)
        assert outcome.name == entries[0].outcome, (what, outcome)
        self.sent.append(Sent(what, identity, seq, outcome.result, entries[0]))

    # Rules: redelivery, time, crashes, housekeeping.

    @precondition(lambda self: bool(self.sent))
    @rule(number=st.integers(0, 30), how=st.sampled_from(REPEATS))
    def again(self, number: int, how: str) -> None:
        """A message comes a second time: from the broker, or from its sender."""
        chosen = [sent for sent in self.sent if how == "redelivered" or isinstance(sent.what, Reply) == (how != "command repeated")]
        if not chosen:
            return
        sent = chosen[number % len(chosen)]
        if how == "redelivered":
            self.redelivered(sent)
        elif how == "command repeated":
            self.command_repeated(sent)
        else:
            assert isinstance(sent.what, Reply)
            payload = "else" if how == "reply with another payload" else sent.what.payload
            self.replied(sent.what.correlation_id, payload, sent.what.event_id, 0, sent.what.flow_id)

    def redelivered(self, sent: Sent) -> None:
        """The broker delivers a message again: it is told what became of it, and nothing changes."""
        (outcome,) = self.carried_out(
            lambda: [self.engine.submit(sent.what, sent.identity, source="IN", seq=sent.seq, raw=RAW)], lambda: None
        )
        assert outcome.repeat
        assert outcome.name == sent.entry.outcome, (sent, outcome)
        if not isinstance(sent.what, Reply):
            assert outcome.result == sent.result, "byte for byte"

    def command_repeated(self, sent: Sent) -> None:
        """The client sends a command again under the same id: it gets the stored outcome, byte for byte."""
        self.seq += 1
        seq = self.seq
        (outcome,) = self.carried_out(
            lambda: [self.engine.submit(sent.what, sent.identity, source="IN", seq=seq, raw=RAW)],
            lambda: void(self.model.taken(Entry("duplicate"))),
        )
        assert (outcome.name, outcome.result) == ("duplicate", sent.result)

    @rule(seconds=st.sampled_from([0, 1, 5, 20, 60, 100]))
    def time_passes_and_the_tick_comes(self, seconds: int) -> None:
        self.time_passes(seconds)

        def expected() -> None:
            self.model.tick()
            self.model.settle()

        due = self.run(self.store.due(self.clock.us, 100)).flows
        passed = [DeadlinePassed(flow_id=d.flow_id, wait_id=d.wait_id or 0, at_us=self.clock.us) for d in due]
        self.carried_out(lambda: [self.engine.submit(one) for one in passed], expected)
        assert self.run(self.store.due(self.clock.us, 100)).flows == []

    @rule(seconds=st.sampled_from([1, 5, 20, 60]))
    def time_passes(self, seconds: int) -> None:
        """The tick is late."""
        self.clock.us += seconds * SECOND
        self.model.now = self.clock.us

    @rule(which=st.sampled_from(CHORES), number=st.integers(0, 25))
    def chore(self, which: str, number: int) -> None:
        """What happens now and then. A kill comes in the n-th statement of the next message, or right after its commit."""
        match which:
            case "kill":
                self.kill = [number]
            case "kill after commit":
                self.kill = [None]
            case "restart":
                self.open()
            case "expire":
                self.expired()
            case "prune":
                self.pruned()
            case _:
                self.a_deadline_of_an_older_generation_passes(number)

    def a_deadline_of_an_older_generation_passes(self, number: int) -> None:
        """SEMANTICS R8."""
        flow = self.model.flows.get(self.flow(number))
        wait_id = (flow.wait_id if flow is not None and flow.wait_id is not None else 5) - 1 - number % 5
        passed = DeadlinePassed(flow_id=self.flow(number), wait_id=wait_id, at_us=self.clock.us + 10**9)
        (outcome,) = self.carried_out(lambda: [self.engine.submit(passed)], lambda: None)
        assert outcome.name == "unmatched"

    def expired(self) -> None:
        """SEMANTICS R4."""

        def expire(transaction: Transaction) -> int:
            return transaction.expire_held(self.clock.us, 1000)

        self._kept_house(expire)
        self.model.expire()

    def pruned(self) -> None:
        """Everything is published, and old enough."""

        def publish(transaction: Transaction) -> None:
            transaction.mark_published("events", 10**9)

        def prune(transaction: Transaction) -> int:
            return transaction.prune_flows(self.clock.us, 1000)

        before = {flow.id for flow in self.model.flows.values()}
        self._kept_house(publish)
        self._kept_house(prune)
        self.model.prune(self.clock.us)
        for flow_id in before - {flow.id for flow in self.model.flows.values()}:
            self.folded.pop(flow_id)

    def _kept_house(self, chore: Work[Any]) -> None:
        async def done() -> None:
            self.engine.do(chore)
            await self.engine._step()

        self.run(done())

    # What holds after every rule.

    @invariant()
    def compared(self) -> None:
        """The whole database is what the model says, and what the journal says."""
        database = self.database
        self._fold_new_events(database)
        stored = {row[0]: row for row in database.execute(FLOWS)}
        assert set(stored) == set(self.model.flows)
        for flow_id, row in stored.items():
            flow, model = rows.flow(row[:20]), self.model.flows[flow_id]
            assert self.folded[flow_id] == flow
            shown = (flow.status.value, flow.cancel_requested, flow.revision, flow.wait_id, flow.updated_us, row[20])
            assert shown == (model.status, model.cancel, model.revision, model.wait_id, model.updated, model.due), flow_id
            assert set(flow.progress or {}) == set(model.progress), flow_id
        waiting = sorted((o.flow.id, o.wait_id, o.part.leaf) for o in self.model.opened if o.is_open)
        assert [tuple(row) for row in database.execute(WAITERS)] == waiting
        held = [((row[0], row[1]), row[2]) for row in database.execute("SELECT topic, correlation_id, arrived_us FROM held ORDER BY n")]
        assert held == [(held.pair, held.arrived) for held in self.model.held]
        counted = {name: value for name, value in database.execute("SELECT name, value FROM counters") if value}
        assert counted == self.model.counts()
        owners = {flow.owner for flow in self.model.flows.values()}
        sizes = {owner: sum(len(row[8].encode()) for row in stored.values() if row[3] == owner) for owner in owners}
        usage = {f"agent:{row[0]}:session:main": row[1:] for row in database.execute("SELECT agent, open_flows, state_bytes FROM usage")}
        assert usage == {owner: (self.model.open_of(owner), sizes[owner]) for owner in owners}
        taken_in = sum(value for name, value in counted.items() if name.startswith("inbox."))
        assert taken_in == len(self.model.taken_in) == database.execute("SELECT count(*) FROM inbox").fetchone()[0]
        assert database.execute("SELECT count(*) FROM dead_letters").fetchone()[0] == self.model.buried

    def _fold_new_events(self, database: sqlite3.Connection) -> None:
        """Fold the new journal entries; sequences and revisions have no gaps."""
        for number, *row in database.execute(EVENTS, (self.last_event,)).fetchall():
            event, before = rows.event(row), self.folded.get(row[0])
            assert event.seq == (before.seq + 1 if before else 1)
            assert event.revision == (before.revision + 1 if before else 0)
            self.folded[event.flow_id] = fold(before, event)
            self.last_event = number

    def teardown(self) -> None:
        """Read every journal whole, through the store."""
        for flow_id in self.model.flows:
            page = self.run(self.store.list_events(flow_id, limit=10_000))
            assert fold_journal(page.items) == self.run(self.store.get(flow_id))
        self.database.close()


RAW = RawMessage(subject=TOPIC, headers={}, body=b"{}")
FLOWS = """
    SELECT id, controller_id, goal, owner_session_key, requester_origin, current_step, status, cancel_requested, state_json, wait_json,
      wait_id, parked_us, progress_json, revision, seq, created_us, updated_us, parent_id, hops, set_aside, due_us
    FROM flows
"""
WAITERS = "SELECT f.id, w.wait_id, w.leaf FROM waiters AS w JOIN flows AS f ON f.n = w.flow WHERE w.open = 1 ORDER BY 1, 2, 3"
EVENTS = """
    SELECT e.n, f.id, e.seq, e.revision, e.kind, e.payload_json, e.at_us, e.actor, e.status, e.previous_status, e.current_step, e.cause,
      e.correlation_id, e.trace
    FROM flow_events AS e JOIN flows AS f ON f.n = e.flow WHERE e.n > ? ORDER BY e.n
"""


def void(_: object) -> None:
    """Return nothing."""


def _walk(condition: dict[str, Any]) -> list[dict[str, Any]]:
    """List a condition and all its parts."""
    return [condition, *(part for below in condition.get("conditions", ()) for part in _walk(below))]


def shared(machine: type[RuleBasedStateMachine]) -> type[RuleBasedStateMachine]:
    """Have a quick run play a quarter as many examples; which, the commit says."""
    return seed(int(head(), 16) % SHARE)(machine) if SIZE is Tests.QUICK else machine


TestTheEngineDoesWhatTheModelSays = shared(Machine).TestCase
TestTheEngineDoesWhatTheModelSays.settings = settings(
    max_examples=20_000 if LONG else 2000 // SHARE,
    stateful_step_count=50 if LONG else 12,
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
