"""Decide and commit in groups: every source submits to one queue, one task owns the writing connection (ARCHITECTURE 2).

While one transaction runs, the next batch gathers; then all it names is loaded in a few statements, each stimulus is decided in order
in memory, everything is written at once and made durable by one commit, and only then the futures resolve. There is no timer: an idle
engine commits a single message at once, a busy one shares its fsync among hundreds. A refusal is a value and spoils nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from worker.batching import Outcome, Raw, Submission, Useless, decide_batch, needs_of
from worker.errors import FlowError, Internal, Refusal, RevisionMismatch, Unavailable
from worker.flow.commands import Policy, Stimulus
from worker.store.base import Batch, Chore, LostRace, Store
from worker.times import Micros
from worker.wire.codec import Identity

_RACE_BUDGET = 3
Clock = Callable[[], Micros]
Listener = Callable[[Batch], None]


class _Job(msgspec.Struct, frozen=True):
    """Housekeeping on its way to a transaction of its own."""

    chore: Chore
    done: asyncio.Future[Any]


class Engine:
    """The one writer. `submit` from anywhere on the loop; `run` commits until `close`.

    `max_batch` bounds how many stimuli share a transaction.
    """

    def __init__(self, store: Store, *, clock: Clock, policy: Policy, max_batch: int = 500) -> None:
        self.store = store
        self.clock = clock
        self.policy = policy
        self._max_batch = max_batch
        self._queue: deque[Submission | _Job] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._broken: Refusal | None = None
        self._listeners: list[Listener] = []
        self._log = structlog.get_logger("engine")

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every committed batch, on the loop, before its futures resolve. It must not raise or block."""
        self._listeners.append(listener)

    @property
    def queued(self) -> int:
        """How many submissions wait for their transaction."""
        return len(self._queue)

    def submit(
        self,
        what: Stimulus | Useless,
        identity: Identity | None = None,
        *,
        source: str = "local",
        seq: int | None = None,
        raw: Raw | None = None,
        alone: bool = False,
    ) -> asyncio.Future[Outcome]:
        """Queue a stimulus; the future gives its `Outcome` after the commit, or raises `Unavailable` or a `Refusal`.

        `identity` makes it idempotent; `source` and `seq` say where the message lies, `raw` what it was. `alone`: in a batch of its
        own, so that a message suspected of killing the process takes no other with it.
        """
        done = _future()
        self._enqueue(Submission(what=what, identity=identity, source=source, seq=seq, raw=raw, alone=alone, done=done))
        return done

    def do(self, chore: Chore) -> asyncio.Future[Any]:
        """Queue housekeeping; the future gives what the chore returns, after the commit."""
        job = _Job(chore, _future())
        self._enqueue(job)
        return job.done

    def _enqueue(self, item: Submission | _Job) -> None:
        """Append to the queue and wake the committer; once it is stopped, fail the future, for its commit will not come."""
        if self._broken is not None or self._closing:
            _fail(item.done, self._broken or Unavailable("the worker is stopping"))
            return
        self._queue.append(item)
        self._arrived.set()

    async def run(self) -> None:
        """Commit until closed and drained. Raises `StoreBroken` or `StoreLocked` when the store is lost."""
        try:
            while True:
                if not self._queue:
                    if self._closing:
                        return
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                await self._step()
        except Refusal as broken:
            self._broken = broken
            self._fail_queued(broken)
            raise

    def close(self) -> None:
        """Take nothing more; `run` returns when what is queued is committed."""
        self._closing = True
        self._arrived.set()

    async def _step(self) -> None:
        """Carry out the next job or batch."""
        first = self._queue[0]
        if isinstance(first, _Job):
            self._queue.popleft()
            await self._carry_out(first)
            return
        await self._commit(self._gather())

    def _gather(self) -> list[Submission]:
        """Take what is queued, up to the bound, in order; a suspect goes alone, a job ends the batch."""
        batch: list[Submission] = []
        while self._queue and len(batch) < self._max_batch:
            head = self._queue[0]
            if isinstance(head, _Job) or (head.alone and batch):
                break
            self._queue.popleft()
            batch.append(head)
            if head.alone:
                break
        return batch

    async def _carry_out(self, job: _Job) -> None:
        """Run housekeeping in its own transaction."""
        try:
            transaction = await self.store.begin()
            try:
                result = await job.chore(transaction)
            except BaseException:
                await transaction.rollback()
                raise
            await transaction.commit()
        except Refusal as broken:
            _fail(job.done, broken)
            raise
        except Exception as bad:  # noqa: BLE001  # a job's defect is its caller's to see, and no reason to stop committing
            _fail(job.done, bad)
        else:
            _resolve(job.done, result)

    async def _commit(self, batch: list[Submission]) -> None:
        """Commit a batch; where a constraint or a defect spoils it, its parts one by one, so that only the culprit pays."""
        try:
            await self._transact(batch)
        except Refusal as broken:
            for submission in batch:
                _fail(submission.done, broken)
            raise
        except Unavailable as later:
            for submission in batch:
                _fail(submission.done, later)
        except Exception as bad:  # noqa: BLE001  # named below, per message: an unmapped error must not take the TaskGroup down
            await self._one_by_one(batch, bad)

    async def _one_by_one(self, batch: list[Submission], bad: Exception) -> None:
        """Commit the parts of a spoiled batch; a part that spoils itself is refused and reported."""
        if len(batch) > 1:
            for submission in batch:
                await self._commit([submission])
            return
        try:
            error: FlowError = await self._again(batch, bad)
        except Exception as defect:  # noqa: BLE001  # reported here, answered as internal: the message comes again or is dead-lettered
            self._log.error("stimulus_failed", stimulus=type(batch[0].what).__name__, exc_info=defect)
            error = Internal("the change could not be stored: the worker's log says why")
        _fail(batch[0].done, error)

    async def _again(self, batch: list[Submission], bad: Exception) -> FlowError:
        """Try a lost race again within a small budget; then it is a `RevisionMismatch`. Raises everything else."""
        for _ in range(_RACE_BUDGET):
            if not isinstance(bad, LostRace):
                raise bad
            try:
                await self._transact(batch)
            except LostRace as lost:
                bad = lost
            else:
                return Internal("resolved")
        return RevisionMismatch("another process kept changing the flow: read it again")

    async def _transact(self, submissions: list[Submission]) -> None:
        """Load, decide, save and commit one batch, then resolve its futures."""
        now = self.clock()
        transaction = await self.store.begin()
        try:
            loaded = await transaction.load(needs_of(submissions), now)
            batch, outcomes = decide_batch(submissions, loaded, now, self.policy)
            for flow_id, why in loaded.world.unreadable.items():
                self._log.error("flow_set_aside", flow_id=flow_id, why=why)
                await transaction.set_aside(flow_id, why)
            await transaction.save(batch)
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()
        for listener in self._listeners:
            listener(batch)
        for submission, outcome in zip(submissions, outcomes, strict=True):
            _resolve(submission.done, outcome)

    def _fail_queued(self, broken: Refusal) -> None:
        """Tell everything that is still queued that its commit will not come."""
        while self._queue:
            _fail(self._queue.popleft().done, broken)


def _future() -> asyncio.Future[Any]:
    """Make a future on the running loop."""
    return asyncio.get_running_loop().create_future()


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    """Resolve a future that its waiter may have cancelled."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Fail a future that its waiter may have cancelled."""
    if not future.done():
        future.set_exception(error)
