"""Decide and commit in groups: one queue, one writing task (ARCHITECTURE 2).

While a transaction runs, the next batch gathers. Then `batch` loads what it names in a few statements, decides each stimulus in order in
memory and writes everything at once; one commit makes it durable, and only then the futures resolve. There is no timer: an idle engine
commits a single message at once, a busy one shares its fsync among hundreds. A refusal is a value and spoils nothing. While the store takes
no changes, what a stream delivered stays queued in its order, and whoever asked directly gets `Unavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any

import structlog

from nats_taskflow.engine.batch import decide_batch
from nats_taskflow.engine.deferral import Deferrals
from nats_taskflow.engine.queue import Job, Queue
from nats_taskflow.engine.submission import Original, Submission, SubmissionOutcome, UnreadableMessage
from nats_taskflow.errors import FlowError, Internal, Refusal, RevisionMismatch, Unavailable
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import FollowUp, Stimulus
from nats_taskflow.futures import fail, fail_all, new_future, resolve, run_shielded
from nats_taskflow.store.port import LostRace, Store, Work
from nats_taskflow.store.records import Batch
from nats_taskflow.units import Micros
from nats_taskflow.wire.inbound import Identity

_RACE_BUDGET = 3
_STALL = 1.0
"""Seconds without a try after the store could not take a change (a full disk)."""
Clock = Callable[[], Micros]
Listener = Callable[[Batch], None]


class StoreHealth(Enum):
    """Whether the store takes changes, is left alone after it did not, or is retried."""

    WRITABLE = auto()
    STALLED = auto()
    RETRYING = auto()


class Engine:
    """The one writer. `submit` from anywhere on the loop; `run` commits until `close`.

    `max_batch` bounds how many stimuli share a transaction; `timed` hears how many seconds each committed transaction took.
    """

    def __init__(
        self, store: Store, *, clock: Clock, policy: Policy, max_batch: int = 500, timed: Callable[[float], None] = lambda _: None
    ) -> None:
        self.store = store
        self.clock = clock
        self.policy = policy
        self.batches_postponed = 0
        self._timed = timed
        self._queue = Queue(max_batch)
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._health = StoreHealth.WRITABLE
        self._broken: Refusal | None = None
        self._listeners: list[Listener] = []
        self._recovery_listeners: list[Callable[[], None]] = []
        self._deferrals = Deferrals(self._arrived.set, self._fail_deferred)
        self._log = structlog.get_logger("engine")

    def listen(self, listener: Listener) -> None:
        """Call `listener` with each committed batch before its futures resolve.

        It is called on the loop, and must not raise or block.
        """
        self._listeners.append(listener)

    def on_store_recovered(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time the store may take changes again after it could not.

        It must not raise or block.
        """
        self._recovery_listeners.append(listener)

    @property
    def stalled(self) -> bool:
        """Whether the store takes no changes at the moment."""
        return self._health is StoreHealth.STALLED

    @property
    def queued(self) -> int:
        """How many submissions wait for their transaction."""
        return len(self._queue) + len(self._deferrals)

    def submit(
        self,
        what: Stimulus | FollowUp | UnreadableMessage,
        identity: Identity | None = None,
        *,
        source: str = "local",
        seq: int | None = None,
        raw: Original | None = None,
        group: int = 0,
        size: int = 0,
        request: bool = False,
    ) -> asyncio.Future[SubmissionOutcome]:
        """Queue a stimulus. Its future gives the outcome after the commit.

        Otherwise the future raises `Unavailable` or a `Refusal`.

        `identity` makes it idempotent. `source` and `seq` say where the message lies; one that has a `seq` waits while the store takes no
        changes, and only a stop makes it `Unavailable`. `raw` is the message itself, `size` its length where it is not kept. `group`: it is
        suspected of killing the process; it is noted in the store before it is begun, with at most so many other suspects. `request`:
        somebody waits for the answer, so it does not wait behind the stream's backlog.
        """
        done = new_future()
        if raw is not None:
            size = len(raw.body)
        submission = Submission(
            what=what, identity=identity, source=source, seq=seq, raw=raw, group=group, size=size, done=done, request=request
        )
        self._enqueue(submission)
        return done

    def do(self, work: Work[Any]) -> asyncio.Future[Any]:
        """Queue housekeeping; the future gives what the work returns, after the commit."""
        job = Job(work, new_future())
        self._enqueue(job)
        return job.done

    def _enqueue(self, item: Submission | Job) -> None:
        """Queue an item and wake the committer. After the stop, fail its future."""
        if self._broken is not None or self._closing.is_set():
            fail(item.done, self._broken or _stopping())
            return
        self._queue.put(item)
        self._arrived.set()

    async def run(self) -> None:
        """Commit until closed and drained. Raises `StoreBroken` or `StoreLocked`."""
        reason: Refusal | Unavailable = _stopping()
        try:
            while True:
                if not self._queue and not self._deferrals.ready:
                    if self._closing.is_set():
                        return
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                await run_shielded(self._step())
                if self.stalled and not await self._pause():
                    return
        except Refusal as broken:
            self._broken = reason = broken
            raise
        finally:
            self._closing.set()
            fail_all([*self._queue.clear(), *(submission.done for submission in self._deferrals.close())], reason)

    def close(self) -> None:
        """Take nothing more; `run` returns when what is queued is committed."""
        self._closing.set()
        self._arrived.set()

    async def _step(self) -> None:
        """Run the next job, or commit the next batch."""
        work = self._queue.take() if self._queue else []
        if isinstance(work, Job):
            await self._run_job(work)
            return
        if not any(submission.group for submission in work[:1]):
            work = [*self._deferrals.take_ready(), *work]
        if not work:
            return
        try:
            await self._commit(work)
        except Unavailable as error:
            self._postpone([s for s in work if not s.done.done() and s not in self._deferrals], error)
        else:
            self._health = StoreHealth.WRITABLE

    async def _commit(self, batch: list[Submission], *, again: bool = False, races: int = 0) -> None:
        """Commit a batch. If it fails by a constraint or defect, commit its parts singly.

        So only the culprit pays. A batch of one is tried a second time too: what fails only once costs nobody its place in the order.
        """
        try:
            if batch[0].group and not again:
                places = [(submission.source, submission.seq or 0) for submission in batch]
                await self.store.transact(lambda transaction: transaction.note_attempts(places))
            await self._transact(batch)
        except Unavailable:
            raise
        except Refusal as broken:
            fail_all([submission.done for submission in batch], broken)
            raise
        except Exception as error:  # noqa: BLE001  # an unmapped error must not take the TaskGroup down
            if isinstance(error, LostRace) and len(batch) == 1 and races < _RACE_BUDGET:
                await self._commit(batch, again=True, races=races + 1)
            elif not again:
                await self._commit_one_by_one(batch)
            else:
                fail(batch[0].done, self._error_for(batch[0], error))

    async def _commit_one_by_one(self, batch: list[Submission]) -> None:
        """Commit the parts of a spoiled batch, each in a transaction of its own."""
        for submission in batch:
            try:
                await self._commit([submission], again=True)
            except Refusal as broken:
                fail_all([other.done for other in batch], broken)
                raise

    async def _transact(self, submissions: list[Submission]) -> None:
        """Decide a batch in one transaction, announce it, and resolve its futures."""
        now, began = self.clock(), time.monotonic()
        work = partial(decide_batch, submissions, now, self.policy, self._deferrals.prior_answers)
        decision, batch = await self.store.transact(work)
        self._timed(time.monotonic() - began)
        for flow_id, why in batch.set_aside.items():
            self._log.error("flow_set_aside", flow_id=flow_id, why=why)
        if batch.adds_dead_letters:
            self._log_dead_letters(batch)
        self._announce(batch)
        self._queue.put_back(submissions[len(decision.decided) + len(decision.deferrals) :])
        self._deferrals.put(decision.deferrals)
        for submission, outcome in zip(decision.decided, decision.outcomes, strict=True):
            self._deferrals.forget(submission)
            resolve(submission.done, outcome)

    def _announce(self, batch: Batch) -> None:
        """Call the listeners. Their defects are logged, so that no batch is decided twice."""
        for listener in self._listeners:
            try:
                listener(batch)
            except Exception:  # noqa: BLE001  # logged with its traceback: it is a defect, and not of this batch
                self._log.exception("listener_failed")

    def _log_dead_letters(self, batch: Batch) -> None:
        """Log what could not be used: whoever sent it may hear of it nowhere else."""
        for letter in batch.letters:
            self._log.warning(
                "dead_lettered", reason=letter.reason, subject=letter.subject, stream=letter.stream, seq=letter.seq, why=letter.message
            )
        for _, why in batch.displaced:
            self._log.warning("dead_lettered", reason="expired", why=why)

    def _postpone(self, batch: list[Submission], error: Unavailable) -> None:
        """Put deliveries back at the head of the queue, and fail direct requests.

        Were deliveries given back to the broker, what came after them would be decided first: a flow's `wait` before its `start`. Whoever
        asked directly asks again under the same command id.
        """
        self._queue.put_back([submission for submission in batch if submission.seq is not None])
        fail_all([submission.done for submission in batch if submission.seq is None], error)
        self.batches_postponed += 1
        if self._health is StoreHealth.WRITABLE:
            self._log.warning("store_unavailable", why=error.message, retry_in=_STALL, waiting=len(self._queue))
        self._health = StoreHealth.STALLED

    async def _pause(self) -> bool:
        """Pause after a refused write. Returns False if the engine was closed meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), _STALL)
            return False
        self._health = StoreHealth.RETRYING
        for listener in self._recovery_listeners:
            listener()
        return True

    async def _run_job(self, job: Job) -> None:
        """Run housekeeping in its own transaction."""
        try:
            result = await self.store.transact(job.work)
        except Refusal as broken:
            fail(job.done, broken)
            raise
        except Exception as error:  # noqa: BLE001  # a job's defect is its caller's to see, and no reason to stop committing
            fail(job.done, error)
        else:
            resolve(job.done, result)

    def _fail_deferred(self, submission: Submission, defect: Exception) -> None:
        fail(submission.done, self._error_for(submission, defect))

    def _error_for(self, submission: Submission, error: Exception) -> FlowError:
        """Return the error for a submission that cannot be stored; log a defect."""
        if isinstance(error, LostRace):
            return RevisionMismatch("another process kept changing the flow: read it again")
        self._log.error("stimulus_failed", stimulus=type(submission.what).__name__, exc_info=error)
        return Internal("the change could not be stored: the worker's log says why")


def _stopping() -> Unavailable:
    return Unavailable("the worker is stopping")
