"""Bugs that the checks have to find, each planted into the program from outside: a harness that misses one is blind there.

Every bug is a mistake that somebody could make in one line of the place it is planted in. `tests/faults/test_planted.py` runs them.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from nats_taskflow import wiring
from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.port import Ack, OutgoingMessage
from nats_taskflow.engine import batch
from nats_taskflow.engine.batch import BatchDecision
from nats_taskflow.engine.batch_rows import BatchRows
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import Waiter
from nats_taskflow.flow.stimuli import CancelFlow, DeadlinePassed, Reply
from nats_taskflow.services.consumer import Consumer
from nats_taskflow.services.recovery import Recovery
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.store.records import Batch
from nats_taskflow.store.sqlite.lock import WriterLock
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.store.sqlite.upkeep import Upkeep
from nats_taskflow.wire.events import event_message
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.subjects import Subjects

_Store: Any = SqliteFlowStore
_Transaction: Any = SqliteTransaction
_Deciding: Any = BatchDecision
_Rows: Any = BatchRows
_Recovery: Any = Recovery
_Lock: Any = WriterLock
_Upkeep: Any = Upkeep
_Batch: Any = Batch
_Waits: Any = WaitEngine
_wiring: Any = wiring
_deciding: Any = batch
"""What is patched, seen as anything: replacing a method is what type checkers are there to prevent."""
SLOW = 0.03
"""Seconds by which a bug widens the window it needs to show."""
EARLY_US = 1_000_000


def plant(name: str) -> None:
    """Plant a bug. Raises `KeyError` for one that does not exist."""
    {bug.__name__: bug for bug in PLANTED}[name]()


def _after(owner: Any, name: str, then: Callable[..., Any]) -> None:
    """Have `then(self, *arguments)` run after a plain method."""
    step = getattr(owner, name)

    @functools.wraps(step)
    def both(self: Any, *arguments: Any, **named: Any) -> Any:
        """Do both."""
        result = step(self, *arguments, **named)
        then(self, *arguments)
        return result

    setattr(owner, name, both)


def _before_saving(spoil: Callable[[SqliteTransaction, Batch], Any]) -> None:
    """Spoil each batch before it is written."""
    save = SqliteTransaction.save

    def spoiled(self: SqliteTransaction, batch: Batch) -> None:
        """Spoil it, and save it."""
        spoil(self, batch)
        save(self, batch)

    _Transaction.save = spoiled


def _instead_of_deciding(change: Callable[[Any, Any], Any]) -> None:
    """Change each stimulus before it is decided: `change(stimulus, world)` gives what is decided in its place."""
    decide = _deciding.decide
    _deciding.decide = lambda stimulus, world, *rest: decide(change(stimulus, world), world, *rest)


def acks_before_commit() -> None:
    """The message is acknowledged as it is taken, and what was not committed at a kill is gone."""
    begin = SqliteTransaction.begin

    def slow(self: SqliteTransaction) -> None:
        """Begin later, so that something is in hand."""
        time.sleep(10 * SLOW)
        begin(self)

    async def nothing(*_: Any) -> None:
        """Find nothing missing at the start: a worker that sees the gap has it delivered again, and hides this bug."""

    _Transaction.begin = slow
    _Recovery._first_missing = nothing
    _after(Consumer, "_take", lambda self, delivery: self._bus.settle(delivery, Ack()))


def skips_the_inbox() -> None:
    """No row says what became of a message."""
    _Rows.add_message = lambda *_, **__: None


def forgets_repeats() -> None:
    """A message that comes again is decided again."""
    _Deciding._dedupe = lambda *_: None


def _spoil_reading(spoil: Callable[[list[Any]], list[Any]]) -> None:
    """Spoil what the relay reads of the outbox."""
    events = _wiring.read_events

    def spoiled(*given: Any) -> Any:
        """Make the spoiled reading."""
        read = events(*given)

        async def reading(after: int, limit: int) -> list[Any]:
            """Read, and spoil."""
            return spoil(await read(after, limit))

        return reading

    _wiring.read_events = spoiled


def drops_outbox_rows() -> None:
    """Every seventh event is not published, whether it is read or taken from the batch that was committed."""

    def thinned(letters: list[Any]) -> list[Any]:
        """Return six of seven."""
        return [letter for letter in letters if letter.n % 7]

    _spoil_reading(thinned)
    fresh_events = _wiring.events_of_batch
    _wiring.events_of_batch = lambda *given: functools.partial(lambda fresh, batch: thinned(fresh(batch)), fresh_events(*given))


def swaps_outbox_rows() -> None:
    """What is read together is published backwards."""
    _spoil_reading(lambda letters: [replace(letter, lane=f"{letter.n}") for letter in reversed(letters)])


def publishes_before_commit() -> None:
    """The event is out before the change is durable; a kill between leaves an event of what never was."""
    opened: list[tuple[JetStreamBus, asyncio.AbstractEventLoop]] = []
    _after(JetStreamBus, "__init__", lambda self, *_: opened.append((self, asyncio.get_running_loop())))

    def publish(_: SqliteTransaction, batch: Batch) -> None:
        """Publish what is not committed yet."""
        bus, loop = opened[0]
        owners = {write.flow.id: write.flow for write in batch.flows}
        for event in batch.events:
            flow = owners[event.flow_id]
            message = event_message(event, flow.controller_id, flow.owner_session_key, Subjects("taskflow"))
            headers = {name: value for name, value in message.headers.items() if name != MSG_ID}
            early = OutgoingMessage(subject=message.subject, body=message.body, msg_id=message.headers[MSG_ID], headers=headers)
            loop.call_soon_threadsafe(bus.publish, early)
        time.sleep(10 * SLOW)  # most of the time, so that a kill comes in it

    _before_saving(publish)


def resumes_a_newer_wait() -> None:
    """A reply to a wait that is over resumes the wait that its flow has now."""

    def newest(stimulus: Any, world: Any) -> Any:
        """Aim a reply that nobody waits for at the next wait of the flow that waited for it."""
        pair = (stimulus.topic, stimulus.correlation_id) if isinstance(stimulus, Reply) else None
        if pair is None or world.waiters(pair):
            return stimulus
        flow = world.flow(world.last_flow(pair) or "")
        wait = flow.wait_json if flow is not None else None
        if not wait or "correlation_id" not in wait:
            return stimulus
        world.add_waiter(Waiter(flow_id=flow.id, wait_id=flow.wait_id, leaf=0, topic=pair[0], correlation_id=pair[1], mode="one"))
        return stimulus

    _instead_of_deciding(newest)


def ignores_the_expected_revision() -> None:
    """Of two writers that saw the same revision, both win."""
    _instead_of_deciding(
        lambda stimulus, _: replace(stimulus, expected_revision=None) if hasattr(stimulus, "expected_revision") else stimulus
    )


def loses_early_replies() -> None:
    """A reply before its wait is not kept."""
    _before_saving(lambda _, batch: batch.held.clear())


def takes_no_lock() -> None:
    """Any number of workers open the database."""
    _Lock.acquire = lambda _: None


def fires_timers_early() -> None:
    """Time acts before it is due."""
    due, next_due = SqliteFlowStore.due, SqliteFlowStore.next_due

    async def early(self: SqliteFlowStore, now: int, limit: int, decided: int | None = None) -> Any:
        """Return what is due soon, also where replies are not decided."""
        return await due(self, now + EARLY_US, limit, None if decided is None else decided + EARLY_US)

    async def earlier(self: SqliteFlowStore) -> Any:
        """Return a time before the next one."""
        following = await next_due(self)
        return None if following is None else following - EARLY_US

    _Store.due, _Store.next_due = early, earlier
    _instead_of_deciding(
        lambda stimulus, _: replace(stimulus, at_us=stimulus.at_us + EARLY_US) if isinstance(stimulus, DeadlinePassed) else stimulus
    )


def fires_timers_twice() -> None:
    """The end of a wait by time is journaled twice."""

    def double(_: SqliteTransaction, batch: Batch) -> None:
        """Repeat the entries of such ends."""
        for event in list(batch.events):
            cause = event.payload.get("patch", {}) or {}
            if event.kind is EventKind.RESUMED and cause.get("resume_meta", {}).get("cause") == "timeout":
                batch.events.append(replace(event, seq=event.seq + 1))

    _before_saving(double)


def loses_timers() -> None:
    """The run loop never looks at what is due."""

    async def idle(self: WaitEngine, interval: Any, shutdown: asyncio.Event) -> None:
        """Wait for the stop."""
        await shutdown.wait()

    _Waits.run = idle


def prunes_too_much() -> None:
    """Pruning takes flows that ended just now, published or not."""
    prune = Upkeep.prune_flows

    def greedy(self: Any, older_than: int, limit: int) -> int:
        """Prune whatever has ended."""
        self._upkeep = dict(self._upkeep)
        self._upkeep["prunable_flows"] = """SELECT n, status, owner_session_key, length(CAST(state_json AS BLOB)) FROM flows
          WHERE status IN ('cancelled', 'finished', 'failed') LIMIT ?2 + 0 * ?1"""
        return prune(self, older_than, limit)

    _Upkeep.prune_flows = greedy


def uses_a_revision_twice() -> None:
    """A change now and then keeps the revision."""

    def stuck(_: SqliteTransaction, batch: Batch) -> None:
        """Leave the row where it was."""
        batch.flows[:] = [
            replace(write, flow=replace(write.flow, revision=write.was.revision)) if write.was and write.flow.revision % 4 == 3 else write
            for write in batch.flows
        ]

    _before_saving(stuck)


def ignores_the_epoch() -> None:
    """A worker that was overtaken goes on writing."""
    takes_no_lock()

    def begin(self: SqliteTransaction) -> None:
        """Begin without looking."""
        self._database.execute("BEGIN IMMEDIATE")

    _Transaction.begin = begin


def sends_no_requests() -> None:
    """The request of a delegation is not in the outbox."""
    _before_saving(lambda _, batch: batch.outgoing.clear())


def counts_wrong() -> None:
    """What leaves a counter is not subtracted."""
    count = Batch.count
    _Batch.count = lambda self, name, by: count(self, name, max(by, 0))


def hides_conflicts() -> None:
    """What came under a used id is nowhere to be seen."""
    _Rows.bury = lambda *_: None


def mixes_payloads_up() -> None:
    """A reply brings what the reply before it said."""
    last: list[Any] = [{"n": "nobody's"}]

    def swapped(stimulus: Any, _: Any) -> Any:
        """Exchange the payload for the last one."""
        if not isinstance(stimulus, Reply):
            return stimulus
        last.append(stimulus.payload)
        return replace(stimulus, payload=last.pop(0))

    _instead_of_deciding(swapped)


def resurrects_the_cancelled() -> None:
    """A cancelled flow keeps its wait open."""

    def open_again(_: SqliteTransaction, batch: Batch) -> None:
        """Do not close the waits of flows that were cancelled."""
        cancelled = {write.flow.id for write in batch.flows if write.flow.status is FlowStatus.CANCELLED}
        batch.closed[:] = [(flow_id, wait_id) for flow_id, wait_id in batch.closed if flow_id not in cancelled]

    _before_saving(open_again)


def loses_cancels() -> None:
    """A cancellation is told to have been applied, and is not."""
    _instead_of_deciding(lambda stimulus, _: replace(stimulus, flow_id="") if isinstance(stimulus, CancelFlow) else stimulus)


PLANTED: dict[Callable[[], None], str] = {
    acks_before_commit: "I-1|I-4|has no outcome",
    skips_the_inbox: "I-1",
    forgets_repeats: "I-1|was told",
    drops_outbox_rows: "I-20|I-22",
    swaps_outbox_rows: "I-22|does not run(.|\\n)*KeyError",  # what was sent of another row is nobody's answer
    publishes_before_commit: "I-21|I-22",
    resumes_a_newer_wait: "I-15",
    ignores_the_expected_revision: "I-11",
    loses_early_replies: "I-16",
    takes_no_lock: "I-25",
    fires_timers_early: "I-17",
    fires_timers_twice: "I-7|I-13",
    loses_timers: "plays '(timer|stale)'",
    prunes_too_much: "I-2|left no mark",
    uses_a_revision_twice: "I-7|I-8|I-11",
    ignores_the_epoch: "I-25",
    sends_no_requests: "plays 'delegated'",
    counts_wrong: "I-16",
    hides_conflicts: "I-3",
    mixes_payloads_up: "I-15",
    resurrects_the_cancelled: "I-13|I-14",
    loses_cancels: "plays '(cancelled|race)'",
}
"""The bugs, and what has to tell of each: it is not enough that something goes wrong."""
