"""Decide and commit in groups: every source submits to one queue, one task owns the writing connection (ARCHITECTURE 2).

While one transaction runs, the next batch gathers; then all it names is loaded in a few statements, each stimulus is decided in order
in memory, everything is written at once and made durable by one commit, and only then the futures resolve. There is no timer: an idle
engine commits a single message at once, a busy one shares its fsync among hundreds. A refusal is a value and spoils nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
import structlog

from worker.deciding import Deciding
from worker.errors import FlowError, Internal, Refusal, RevisionMismatch, Unavailable
from worker.flow.commands import Policy, Stimulus
from worker.store.base import Chore, LostRace, Store
from worker.store.records import Batch
from worker.submission import Outcome, Raw, Submission, Useless, needs_of, needs_of_ends
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
            _fail(item.done, self._broken or _stopping())
            return
        self._queue.append(item)
        self._arrived.set()

    async def run(self) -> None:
        """Commit until closed and drained. Raises `StoreBroken` or `StoreLocked` when the store is lost."""
        stopped: Refusal | Unavailable = _stopping()
        try:
            while True:
                if not self._queue:
                    if self._closing:
                        return
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                await _to_its_end(self._step())
        except Refusal as broken:
            self._broken = stopped = broken
            raise
        finally:
            self._closing = True
            _fail_all([item.done for item in self._queue], stopped)
            self._queue.clear()

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

    async def _commit(self, batch: list[Submission], *, races: int = 0) -> None:
        """Commit a batch; where a constraint or a defect spoils it, its parts one by one, so that only the culprit pays."""
        try:
            await self._transact(batch)
        except (Refusal, Unavailable) as lost:
            _fail_all([submission.done for submission in batch], lost)
            if isinstance(lost, Refusal):
                raise
        except Exception as bad:  # noqa: BLE001  # an unmapped error must not take the TaskGroup down
            if len(batch) > 1:
                await self._one_by_one(batch)
            elif isinstance(bad, LostRace) and races < _RACE_BUDGET:
                await self._commit(batch, races=races + 1)
            else:
                _fail(batch[0].done, self._blamed(batch[0], bad))

    async def _one_by_one(self, batch: list[Submission]) -> None:
        """Commit the parts of a spoiled batch, each in a transaction of its own."""
        for submission in batch:
            try:
                await self._commit([submission])
            except Refusal as broken:
                _fail_all([other.done for other in batch], broken)
                raise

    def _blamed(self, submission: Submission, bad: Exception) -> FlowError:
        """Say what is told to whoever submitted what cannot be stored; a defect is reported."""
        if isinstance(bad, LostRace):
            return RevisionMismatch("another process kept changing the flow: read it again")
        self._log.error("stimulus_failed", stimulus=type(submission.what).__name__, exc_info=bad)
        return Internal("the change could not be stored: the worker's log says why")

    async def _transact(self, submissions: list[Submission]) -> None:
        """Load, decide, save and commit one batch, then resolve its futures."""
        now = self.clock()
        transaction = await self.store.begin()
        try:
            loaded = await transaction.load(needs_of(submissions), now)
            deciding = Deciding(loaded, now, self.policy)
            for submission in submissions:
                deciding.decide(submission)
            while ends := deciding.ends():
                deciding.absorb(await transaction.load(needs_of_ends(ends), now))
                deciding.follow(ends)
            batch = deciding.finished()
            for flow_id, why in deciding.unreadable.items():
                self._log.error("flow_set_aside", flow_id=flow_id, why=why)
                await transaction.set_aside(flow_id, why)
            await transaction.save(batch)
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit()
        self._announce(batch)
        for submission, outcome in zip(submissions, deciding.outcomes, strict=True):
            _resolve(submission.done, outcome)

    def _announce(self, batch: Batch) -> None:
        """Tell the listeners of a commit. It is one, whatever they do: a defect of theirs must not have the batch decided again."""
        for listener in self._listeners:
            try:
                listener(batch)
            except Exception:  # noqa: BLE001  # logged with its traceback: it is a defect, and not of this batch
                self._log.exception("listener_failed")


async def _to_its_end(step: Coroutine[Any, Any, None]) -> None:
    """Run a step to its end even when cancelled meanwhile: cancelling an await does not cancel the SQL (ARCHITECTURE 3)."""
    task = asyncio.ensure_future(step)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure from None
        raise


def _stopping() -> Unavailable:
    """Say that nothing more is committed."""
    return Unavailable("the worker is stopping")


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


def _fail_all(futures: Iterable[asyncio.Future[Any]], error: BaseException) -> None:
    """Fail what is still waiting."""
    for future in futures:
        _fail(future, error)
