"""Decide and commit in groups: every source submits to one queue, one task owns the writing connection (ARCHITECTURE 2).

While one transaction runs, the next batch gathers; then all it names is loaded in a few statements, each stimulus is decided in order
in memory, everything is written at once and made durable by one commit, all in one go on the database's thread; only then the futures
resolve. There is no timer: an idle
engine commits a single message at once, a busy one shares its fsync among hundreds. A refusal is a value and spoils nothing. While the
store takes no changes, what a stream delivered stays queued in its order, and whoever asked directly is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from nats_taskflow.engine.deferral import Deferrals
from nats_taskflow.engine.portion import decided
from nats_taskflow.engine.queue import Job, Queue
from nats_taskflow.engine.submission import Original, Submission, SubmissionOutcome, Unreadable
from nats_taskflow.errors import FlowError, Internal, Refusal, RevisionMismatch, Unavailable
from nats_taskflow.flow.stimuli import FollowUp, Policy, Stimulus
from nats_taskflow.futures import fail, fail_all, new_future, resolve, run_shielded
from nats_taskflow.store.port import LostRace, Store, Work
from nats_taskflow.store.records import Batch
from nats_taskflow.units import Micros
from nats_taskflow.wire.codec import Identity

_RACE_BUDGET = 3
_STALL = 1.0
"""Seconds without a try after the store could not take a change (a full disk)."""
Clock = Callable[[], Micros]
Listener = Callable[[Batch], None]


class Engine:
    """The one writer. `submit` from anywhere on the loop; `run` commits until `close`.

    `max_batch` bounds how many stimuli share a transaction; `timed` hears how many seconds each one took that was committed.
    """

    def __init__(
        self, store: Store, *, clock: Clock, policy: Policy, max_batch: int = 500, timed: Callable[[float], None] = lambda _: None
    ) -> None:
        self.store = store
        self.clock = clock
        self.policy = policy
        self._timed = timed
        self._queue = Queue(max_batch)
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._broken: Refusal | None = None
        self._stalled = False
        self._unwell = False
        self.postponed = 0  # how many batches the store did not take
        self._listeners: list[Listener] = []
        self._waiters: list[Callable[[], None]] = []
        self._deferrals = Deferrals(self._arrived.set, self._lost)
        self._log = structlog.get_logger("engine")

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every committed batch, on the loop, before its futures resolve. It must not raise or block."""
        self._listeners.append(listener)

    def when_back(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` each time the store may take changes again after it could not. It must not raise or block."""
        self._waiters.append(waiter)

    @property
    def stalled(self) -> bool:
        """Whether the store takes no changes at the moment."""
        return self._stalled

    @property
    def queued(self) -> int:
        """How many submissions wait for their transaction."""
        return len(self._queue) + len(self._deferrals)

    def submit(
        self,
        what: Stimulus | FollowUp | Unreadable,
        identity: Identity | None = None,
        *,
        source: str = "local",
        seq: int | None = None,
        raw: Original | None = None,
        group: int = 0,
        size: int = 0,
        request: bool = False,
    ) -> asyncio.Future[SubmissionOutcome]:
        """Queue a stimulus; the future gives its `SubmissionOutcome` after the commit, or raises `Unavailable` or a `Refusal`.

        `identity` makes it idempotent; `source` and `seq` say where the message lies (one that has a `seq` waits out a store that takes
        no changes: only the stop makes it `Unavailable`), `raw` what it was, `size` how long where that is not kept. `group`: it is
        suspected of killing the process, and is noted in the store before it is begun, with at most so many other suspects. `request`:
        somebody waits for the answer, so it does not wait behind the stream's backlog.
        """
        done = new_future()
        if raw is not None:
            size = len(raw.body)
        it = Submission(what=what, identity=identity, source=source, seq=seq, raw=raw, group=group, size=size, done=done, request=request)
        self._enqueue(it)
        return done

    def do(self, work: Work[Any]) -> asyncio.Future[Any]:
        """Queue housekeeping; the future gives what the work returns, after the commit."""
        job = Job(work, new_future())
        self._enqueue(job)
        return job.done

    def _enqueue(self, item: Submission | Job) -> None:
        """Queue it and wake the committer; once it is stopped, fail the future, for its commit will not come."""
        if self._broken is not None or self._closing.is_set():
            fail(item.done, self._broken or _stopping())
            return
        self._queue.put(item)
        self._arrived.set()

    async def run(self) -> None:
        """Commit until closed and drained. Raises `StoreBroken` or `StoreLocked` when the store is lost."""
        stopped: Refusal | Unavailable = _stopping()
        try:
            while True:
                if not self._queue and not self._deferrals.ready:
                    if self._closing.is_set():
                        return
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                await run_shielded(self._step())
                if self._stalled and not await self._waited_out():
                    return
        except Refusal as broken:
            self._broken = stopped = broken
            raise
        finally:
            self._closing.set()
            fail_all([*self._queue.clear(), *(submission.done for submission in self._deferrals.close())], stopped)

    def close(self) -> None:
        """Take nothing more; `run` returns when what is queued is committed."""
        self._closing.set()
        self._arrived.set()

    async def _waited_out(self) -> bool:
        """Leave the store alone for a moment. False: the engine was closed, and the store would not take what is left."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), _STALL)
            return False
        self._stalled = False
        for waiter in self._waiters:
            waiter()
        return True

    async def _step(self) -> None:
        """Carry out the next job or batch."""
        work = self._queue.take() if self._queue else []
        if isinstance(work, Job):
            await self._carry_out(work)
            return
        if not any(submission.group for submission in work[:1]):
            work = [*self._deferrals.taken(), *work]
        if not work:
            return
        try:
            await self._commit(work)
        except Unavailable as later:
            self._postpone([s for s in work if not s.done.done() and s not in self._deferrals], later)
        else:
            self._unwell = False

    def _postpone(self, batch: list[Submission], why: Unavailable) -> None:
        """Put what a stream delivered back at the head of the queue; tell the others, who ask again under the same command id.

        Were it given back to the broker instead, what came after it would be decided first: a flow's `wait` before its `start`.
        """
        kept = [submission for submission in batch if submission.seq is not None]
        self._queue.put_back(kept)
        fail_all([submission.done for submission in batch if submission.seq is None], why)
        self._stalled = True
        self.postponed += 1
        if not self._unwell:
            self._unwell = True
            self._log.warning("store_unavailable", why=why.message, retry_in=_STALL, waiting=len(self._queue))

    def _lost(self, submission: Submission, defect: Exception) -> None:
        """Tell whoever submitted what cannot be decided."""
        fail(submission.done, self._blamed(submission, defect))

    async def _carry_out(self, job: Job) -> None:
        """Run housekeeping in its own transaction."""
        try:
            result = await self.store.transact(job.work)
        except Refusal as broken:
            fail(job.done, broken)
            raise
        except Exception as bad:  # noqa: BLE001  # a job's defect is its caller's to see, and no reason to stop committing
            fail(job.done, bad)
        else:
            resolve(job.done, result)

    async def _commit(self, batch: list[Submission], *, again: bool = False, races: int = 0) -> None:
        """Commit a batch; where a constraint or a defect spoils it, its parts one by one, so that only the culprit pays.

        Also a batch of one is tried a second time: what fails only once costs nobody its place in the order.
        """
        try:
            if batch[0].group and not again:
                places = [(submission.source, submission.seq or 0) for submission in batch]
                await self.store.transact(lambda transaction: transaction.note_attempts(places))
            await self._transact(batch)
        except Unavailable:
            raise
        except Refusal as lost:
            fail_all([submission.done for submission in batch], lost)
            raise
        except Exception as bad:  # noqa: BLE001  # an unmapped error must not take the TaskGroup down
            if isinstance(bad, LostRace) and len(batch) == 1 and races < _RACE_BUDGET:
                await self._commit(batch, again=True, races=races + 1)
            elif not again:
                await self._one_by_one(batch)
            else:
                fail(batch[0].done, self._blamed(batch[0], bad))

    async def _one_by_one(self, batch: list[Submission]) -> None:
        """Commit the parts of a spoiled batch, each in a transaction of its own."""
        for submission in batch:
            try:
                await self._commit([submission], again=True)
            except Refusal as broken:
                fail_all([other.done for other in batch], broken)
                raise

    def _blamed(self, submission: Submission, bad: Exception) -> FlowError:
        """Say what is told to whoever submitted what cannot be stored; a defect is reported."""
        if isinstance(bad, LostRace):
            return RevisionMismatch("another process kept changing the flow: read it again")
        self._log.error("stimulus_failed", stimulus=type(submission.what).__name__, exc_info=bad)
        return Internal("the change could not be stored: the worker's log says why")

    async def _transact(self, submissions: list[Submission]) -> None:
        """Decide and commit one batch, then resolve its futures."""
        now, began = self.clock(), time.monotonic()
        work = partial(decided, submissions, now, self.policy, self._deferrals.before)
        deciding, batch = await self.store.transact(work)
        self._timed(time.monotonic() - began)
        for flow_id, why in batch.set_aside.items():
            self._log.error("flow_set_aside", flow_id=flow_id, why=why)
        if batch.buries:
            self._tell_of_letters(batch)
        self._announce(batch)
        self._queue.put_back(submissions[len(deciding.decided) + len(deciding.deferrals) :])
        self._deferrals.put(deciding.deferrals)
        for submission, outcome in zip(deciding.decided, deciding.outcomes, strict=True):
            self._deferrals.forget(submission)
            resolve(submission.done, outcome)

    def _tell_of_letters(self, batch: Batch) -> None:
        """Log what could not be used: whoever sent it may hear of it nowhere else."""
        for letter in batch.letters:
            self._log.warning(
                "dead_lettered", reason=letter.reason, subject=letter.subject, stream=letter.stream, seq=letter.seq, why=letter.message
            )
        for _, why in batch.displaced:
            self._log.warning("dead_lettered", reason="expired", why=why)

    def _announce(self, batch: Batch) -> None:
        """Tell the listeners of a commit. It is one, whatever they do: a defect of theirs must not have the batch decided again."""
        for listener in self._listeners:
            try:
                listener(batch)
            except Exception:  # noqa: BLE001  # logged with its traceback: it is a defect, and not of this batch
                self._log.exception("listener_failed")


def _stopping() -> Unavailable:
    """Say that nothing more is committed."""
    return Unavailable("the worker is stopping")
