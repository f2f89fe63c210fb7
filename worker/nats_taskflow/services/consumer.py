"""Take deliveries in, submit them to the engine, and settle them after the commit.

A message is acked once its outcome is stored, terminated once it is a dead letter, and asked for again (after 1, 5, 30, 120 s) when we
failed. While the store takes no changes (a full disk), nothing is pulled, and what is in hand waits in its order.

A message that was begun five times without an outcome becomes a dead letter unread: it is the one that kills the process. After a kill,
everything that was in hand is suspect. Suspects run in groups, each noted in the store before it begins. With every kill the group that
was running shrinks, so a few kills find the message, and thousands of innocent ones are through in a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from nats_taskflow.bus.port import Ack, Bus, ConsumerSpec, Delivery, InProgress, Nak, PublishFailed, Settlement, Term
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.reader import Reader, Verdict
from nats_taskflow.engine.stored_outcomes import StoredOutcomes
from nats_taskflow.engine.submission import SubmissionOutcome, UnreadableMessage
from nats_taskflow.errors import FlowError, Internal, Refusal, Unavailable
from nats_taskflow.services.outcome_sender import OutcomeSender
from nats_taskflow.services.recovery import Recovery
from nats_taskflow.store.records import NO_SUSPECTS
from nats_taskflow.tasks import Tasks, repeat
from nats_taskflow.text import counted
from nats_taskflow.units import Micros
from nats_taskflow.wire.headers import trace_of
from nats_taskflow.wire.inbound import Ignored, Inbound, Unusable

MAX_ATTEMPTS = 5
MAX_IN_HAND = 2000
MAX_BYTES_IN_HAND = 4 * 1024 * 1024
RETRY_DELAYS = (1.0, 5.0, 30.0, 120.0)
_LOOK_EVERY = 1.0
"""Seconds between looks at what is long in hand: an operator may shorten the broker's patience at any time."""

_GROUPS = (0, 100, 10, 1)
"""How many suspects share a transaction, by how often they were begun: each kill makes the group a tenth."""

_UNREADABLE = frozenset({"malformed", "too_large", "too_deep", "poison"})
"""Reasons for the dead letters even where the header names a command: nothing could be decoded."""

_TERMINATED = frozenset({"dead", "conflict", "flow_mismatch"})
"""Outcomes of messages that are dead letters now."""

_Place = tuple[int, int]
"""A message's sequence in its stream, and when it arrived: a stream that is made again counts from 1 once more."""

OutcomeCounter = Callable[[str, str], None]


class Consumer:
    """Consumes one source.

    `read` turns a delivery into a verdict. `count(verb, outcome)` counts what became of it.
    """

    def __init__(self, bus: Bus, engine: Engine, source: ConsumerSpec, *, read: Reader, count: OutcomeCounter, recovered: bool) -> None:
        self._bus = bus
        self._engine = engine
        self._source = source
        self._read = read
        self._count = count
        self._recovery = Recovery(bus, engine, source, recovered=recovered)
        self._sender = OutcomeSender(bus, StoredOutcomes(engine.store.queries))
        self._in_hand: dict[_Place, Delivery] = {}
        self._bytes_in_hand = 0
        self._last_progress_at: dict[_Place, float] = {}
        self._latest = self._latest_us = 0
        self._suspects = NO_SUSPECTS
        self._begun: dict[_Place, int] = {}
        self._failures: dict[_Place, int] = {}
        self._backlog_left = 0
        self._drained = asyncio.Event()
        self._emptied = asyncio.Event()
        self._released = asyncio.Event()
        self._released.set()
        self._pull_scope: asyncio.Timeout | None = None
        self._log = structlog.get_logger("consumer").bind(stream=source.stream, consumer=source.consumer)
        engine.on_store_recovered(bus.wake)

    async def recover(self) -> None:
        """Recover what the last run had in hand: see `Recovery.begin`."""
        self._suspects, backlog = await self._recovery.begin()
        self._latest = backlog.delivered
        self._backlog_left = backlog.pending
        if self._backlog_left == 0:
            self._drained.set()

    async def run(self) -> None:
        """Pull until cancelled, but not while held."""
        async with Tasks() as tasks:
            tasks.start(repeat(self._keep_alive, "keep alive"), "keep alive")
            tasks.start(repeat(self._pull, "pull"), "pull")

    async def _pull(self) -> None:
        """Pull until held, once that is over."""
        await self._released.wait()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._pull_scope = scope
                await self._bus.pull(self._source, self._take, self._room)
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._pull_scope = None

    def _room(self) -> int:
        full = self._engine.stalled or self._bytes_in_hand > MAX_BYTES_IN_HAND
        return 0 if full else max(MAX_IN_HAND - len(self._in_hand), 0)

    def _take(self, delivery: Delivery) -> None:
        """Take a delivery in hand, read it and submit it. Its outcome comes to `_settle`."""
        place = _place(delivery)
        is_repeat = place in self._in_hand
        self._in_hand[place] = delivery
        if delivery.arrived_us >= self._latest_us:
            self._latest, self._latest_us = delivery.seq, delivery.arrived_us
        self._last_progress_at[place] = asyncio.get_running_loop().time()
        if is_repeat:
            return  # the broker's patience was too short; the outcome of the first delivery settles this one
        self._bytes_in_hand += delivery.size
        begun = self._begun_before(delivery)
        try:
            verdict = _poison(delivery, begun) if begun >= MAX_ATTEMPTS else self._read(delivery)
        except Exception as defect:  # noqa: BLE001  # reported and tried again: one message must not end the worker for all others
            self._retry(delivery, "unusable", defect)
            return
        outcome = self._submit(delivery, verdict, begun)
        if outcome is None:
            self._done(delivery, Ack(), "ignored", "ignored")
        else:
            outcome.add_done_callback(partial(self._settle, delivery, verdict))

    def _submit(self, delivery: Delivery, verdict: Verdict, begun: int) -> asyncio.Future[SubmissionOutcome] | None:
        """Submit a delivery or its dead letter. Returns None where there is nothing to do."""
        source, seq = delivery.stream, delivery.seq
        if isinstance(verdict, Inbound):
            group = _GROUPS[min(begun, len(_GROUPS) - 1)] if _place(delivery) in self._begun else 0
            return self._engine.submit(verdict.stimulus, verdict.identity, raw=delivery, source=source, seq=seq, group=group)
        if isinstance(verdict, Unusable):
            attributed = verdict.identity is not None and (verdict.decoded or verdict.reason not in _UNREADABLE)
            unreadable = UnreadableMessage(error=verdict.error, reason=None if attributed else verdict.reason)
            return self._engine.submit(unreadable, verdict.identity, raw=delivery, source=source, seq=seq)
        return None if verdict.refused is None else self._engine.submit(verdict.refused)

    def _settle(self, delivery: Delivery, verdict: Verdict, future: asyncio.Future[SubmissionOutcome]) -> None:
        """Settle a delivery by its outcome, and answer its sender if it named an inbox."""
        verb = verdict.verb if isinstance(verdict, Inbound) else "ignored" if isinstance(verdict, Ignored) else "unusable"
        failure = future.exception()
        if isinstance(failure, Refusal):
            return  # the process ends; the broker delivers again to the next one
        if failure is not None:
            self._retry(delivery, verb, failure)
            return
        outcome = future.result()
        if isinstance(outcome.error, Internal) and outcome.name == "rejected":
            self._retry(delivery, verb, outcome.error)
            return
        settlement: Settlement = Term(outcome.name) if outcome.name in _TERMINATED else Ack()
        name = outcome.error.code if outcome.error is not None else outcome.name
        self._done(delivery, settlement, verb, "ignored" if isinstance(verdict, Ignored) else name)
        if verdict.reply_to is not None:
            self._sender.send(verdict.reply_to, verdict.identity.scope if verdict.identity is not None else "", outcome)

    def _retry(self, delivery: Delivery, verb: str, failure: BaseException) -> None:
        """Ask for a delivery again: at once if the worker stops, ever later if it fails."""
        if isinstance(failure, Unavailable):
            delay = 0.0
        else:
            place = _place(delivery)
            self._failures[place] = failures = self._failures.get(place, 0) + 1
            delay = RETRY_DELAYS[min(failures, len(RETRY_DELAYS)) - 1]
            self._log.error(
                "delivery_failed",
                action=verb,
                seq=delivery.seq,
                attempt=delivery.attempt,
                retry_in=delay,
                why=failure.message if isinstance(failure, FlowError) else repr(failure),
                traceparent=trace_of(delivery.headers),
            )
        self._done(delivery, Nak(delay), verb, "retried", final=False)

    def _done(self, delivery: Delivery, settlement: Settlement, verb: str, outcome: str, *, final: bool = True) -> None:
        """Settle, make room, and count down the backlog of the start."""
        place = _place(delivery)
        latest = self._in_hand.pop(place, None)
        if latest is None:
            return
        self._last_progress_at.pop(place, None)
        self._bytes_in_hand -= delivery.size
        self._bus.settle(latest, settlement)
        self._count(verb, outcome)
        if not self._in_hand:
            self._emptied.set()
        if final:
            self._failures.pop(place, None)
            self._begun.pop(place, None)
        if final and not self._drained.is_set():
            self._backlog_left -= 1
            if self._backlog_left <= 0:
                self._drained.set()
        self._bus.wake()

    def _begun_before(self, delivery: Delivery) -> int:
        """Return how often the message was begun before, by killed runs and by this one.

        The broker's count is not used: to be delivered again because the store was full, or beside what killed the process, is no fault.
        """
        place = _place(delivery)
        if begun := self._suspects.begun(delivery.seq):
            self._begun[place] = begun
        return self._begun.get(place, 0) + self._failures.get(place, 0)

    async def _keep_alive(self) -> None:
        """Report progress on old deliveries, or the broker delivers them a second time."""
        loop = asyncio.get_running_loop()
        patience = self._bus.ack_wait(self._source) / 3
        await asyncio.sleep(min(patience, _LOOK_EVERY))
        for place, delivery in self._in_hand.items():
            if loop.time() - self._last_progress_at[place] >= patience:
                self._bus.settle(delivery, InProgress())
                self._last_progress_at[place] = loop.time()

    @property
    def in_hand(self) -> int:
        """How many deliveries have no outcome yet."""
        return len(self._in_hand)

    async def decided_until(self) -> Micros:
        """Return the time up to which all that the broker has is decided (SEMANTICS R9).

        Raises `PublishFailed`. Messages come as they were stored: the latest one and the oldest in hand say how far the decisions are.
        """
        now = self._engine.clock()
        backlog = await self._bus.backlog(self._source)
        has_all = backlog.pending == 0 and backlog.delivered <= self._latest
        return min([now if has_all else self._latest_us, *(delivery.arrived_us for delivery in self._in_hand.values())])

    async def drained(self) -> None:
        """Wait until all that the stream had at the start has its outcome (SEMANTICS R9)."""
        await self._drained.wait()

    async def ask_again(self) -> bool:
        """Have unsettled messages delivered again: see `Recovery.ask_again`."""
        return await self._recovery.ask_again()

    def hold(self) -> None:
        """Stop pulling until `release`: messages may not be what was sent."""
        self._released.clear()
        if self._pull_scope is not None and self._pull_scope.when() is None:
            self._pull_scope.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """Pull again."""
        self._released.set()

    async def finish(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until nothing is in hand, then nak the rest."""
        if self._in_hand:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), timeout)
        for delivery in tuple(self._in_hand.values()):
            self._bus.settle(delivery, Nak(0.0))
        self._in_hand.clear()
        await self._sender.finish(1.0)


async def decided_until(consumers: Iterable[Consumer]) -> Micros:
    """Return the time up to which every reply is decided, whichever consumer takes it.

    Returns 0 while the broker does not answer: it may have replies from any time.
    """
    try:
        return min([await consumer.decided_until() for consumer in consumers])
    except PublishFailed:
        return 0


def _place(delivery: Delivery) -> _Place:
    return delivery.seq, delivery.arrived_us


def _poison(delivery: Delivery, begun: int) -> Unusable:
    often = f"begun {counted(begun, 'time')} without an outcome"
    error = Internal(f"{often}: it may kill the process; look at it before you replay it", seq=delivery.seq)
    return Unusable("poison", error)
