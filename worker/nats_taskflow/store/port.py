"""The store port: what the worker needs of a database, with every promise.

The adapter is `store.sqlite`. PostgreSQL with several workers must fit as well, so nothing of SQLite shows here. Every transaction carries
the epoch of the worker that writes: a worker that a newer one has fenced off cannot commit. Reads see committed rows only, and all that was
committed before they began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.store.admin_port import AdminReads, LoggedIntervention
from nats_taskflow.store.records import (
    ALL,
    Batch,
    DeadLetter,
    DueFlows,
    DueOutgoing,
    InboxRow,
    Loaded,
    Needs,
    NumberedEvent,
    Page,
    Suspects,
)
from nats_taskflow.units import Micros


class ConstraintViolated(Exception):
    """A constraint refused the batch, and nothing was kept. Try its parts one by one."""


class LostRace(ConstraintViolated):
    """A flow is not as the batch saw it: another process changed it. Load it again."""


class TooHeavy(Exception):
    """What was to be loaded weighs more than it may. Nothing was changed: load less."""


class Transaction(Protocol):
    """What a piece of work can do in the write transaction.

    It runs on the connection's own thread. A method that returns an `int` returns how many it dealt with.
    """

    def load(self, needs: Needs, now: Micros) -> Loaded:
        """Load what is named, and what belongs to it: waiters' flows, held replies.

        Rows that cannot be read are named in the world. Raises `TooHeavy` as soon as states and stored outcomes weigh more than
        `needs.max_bytes`.
        """
        ...

    def save(self, batch: Batch) -> None:
        """Write the batch, and number its journal entries.

        Raises `ConstraintViolated` where a rule is broken, `LostRace` where a flow is not as the batch saw it.
        """
        ...

    def expire_held(self, now: Micros, limit: int) -> int:
        """Turn at most `limit` expired held replies into dead letters (SEMANTICS R4)."""
        ...

    def prune_flows(self, older_than: Micros, limit: int) -> int:
        """Delete flows that ended and last changed before `older_than`.

        Deletes at most `limit`, with all their rows. One with an event that is not published stays. Their ids stay known (`tombstones`).
        """
        ...

    def prune_tombstones(self, before: Micros, limit: int) -> int:
        """Forget the ids of pruned flows that were last changed before `before`."""
        ...

    def prune_inbox(self, source: str, before_seq: int, before: Micros, limit: int) -> int:
        """Forget messages their stream keeps no more, and `api` requests before `before`."""
        ...

    def mark_published(self, outlet: str, n: int) -> None:
        """Note that the broker has the outlet (`events`, `dead_letters`) up to row `n`."""
        ...

    def suspects(self, source: str, above: int, up_to: int, born: str, *, replies: bool) -> Suspects:
        """Return which messages of a source in (above, up_to] may have been begun.

        These have no outcome yet. `replies`: look at replies, or else at the others. Attempts that were noted while the source had another
        `born` are forgotten: they were of another stream's messages.
        """
        ...

    def note_attempts(self, places: Sequence[tuple[str, int]]) -> None:
        """Count one more attempt at each of these suspects, by source and sequence."""
        ...

    def forget_restored(self) -> None:
        """Note that a restored database has caught up."""
        ...

    def settle_outgoing(self, sent: Sequence[tuple[int, int, Micros]], later: Sequence[tuple[int, Micros]]) -> None:
        """Forget the notices that were sent, and postpone what was not sent.

        A request that was sent is kept until its wait is over. `sent`: row, attempts so far, and when to send again a request that was
        refused meanwhile: that counts as one more attempt.
        """
        ...

    def release(self, flow_id: str) -> Flow | None:
        """Let time and replies reach a flow again that was set aside.

        Returns it, or None where it is not set aside. Raises `Conflict` where its row still cannot be read.
        """
        ...

    def note_replayed(self, number: int, actor: str, now: Micros) -> bool:
        """Note that a dead letter was published again; False: there is no such letter."""
        ...

    def purge_letters(self, numbers: Sequence[int]) -> int:
        """Delete dead letters, except those that are not published yet. Returns how many."""
        ...

    def note_intervention(self, done: LoggedIntervention) -> None:
        """Store what an operator did."""
        ...


Result = TypeVar("Result")
Work = Callable[[Transaction], Result]
"""What is done in one transaction: all of it is kept, or nothing. It has no event loop and must not touch what lives on one."""


class Reads(AdminReads, Protocol):
    """What can be asked of the store.

    Lists are keyset pages: at most `limit` rows after the position `after` (None: from the start), and no more than weigh half a MiB and
    one row. To read all, go on until `next` is None.
    """

    async def get(self, flow_id: str) -> Flow | None:
        """Return the flow, or None. Raises `Internal` for a row that cannot be read."""
        ...

    async def list_flows(
        self, *, owner: str | None = None, status: FlowStatus | None = None, limit: int, after: int | None = None
    ) -> Page[Flow]:
        """List flows, newest first. Rows that cannot be read are left out."""
        ...

    async def list_steps(self, flow_id: str, *, limit: int = ALL, after: int | None = None) -> Page[FlowStep]:
        """List the observed runs of a flow, in the order they were first observed."""
        ...

    async def get_step(self, flow_id: str, run_id: str) -> FlowStep | None:
        """Return an observed run of a flow, or None."""
        ...

    async def list_events(self, flow_id: str, *, limit: int, after: int | None = None, newest: bool = False) -> Page[FlowEvent]:
        """List journal entries, oldest first, or `newest` first. Position: their `seq`."""
        ...

    async def outcome(self, scope: str, key: str) -> InboxRow | None:
        """Return what became of a message, or None."""
        ...

    async def due(self, now: Micros, limit: int, decided: Micros | None = None) -> DueFlows:
        """List the flows due by `now`, at most `limit`, and count those that wait.

        This is all that a tick asks, in one statement. Agents take turns: the earliest flow of each comes before the second of any.
        `decided`: every reply that came until then is decided. A flow that became due later, and that a reply could still resume, is held
        back. None: every reply is decided.
        """
        ...

    async def next_due(self) -> Micros | None:
        """Return when the next flow is due, or None."""
        ...

    async def counts(self) -> dict[str, int]:
        """Return the maintained counters: `flows.<status>`, `inbox.<outcome>`, `held`."""
        ...

    async def unpublished_events(self, after: int, limit: int) -> list[NumberedEvent]:
        """List journal entries with numbers above `after`, in order.

        Lists at most `limit`, and fewer where they weigh more than a page may.
        """
        ...

    async def unpublished_dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """List dead letters above `after` in order, bounded as `unpublished_events` is."""
        ...

    async def outgoing_due(self, now: Micros, limit: int) -> list[DueOutgoing]:
        """List the messages to delegates that are due by `now`.

        Agents take turns, each with its messages in the order of their commits. Lists at most `limit`, and fewer where they weigh more than
        a page may.
        """
        ...

    async def next_outgoing(self) -> Micros | None:
        """Return when the next message to a delegate is to be sent, or None."""
        ...

    async def was_restored(self) -> bool:
        """Return whether this is a copy that has not caught up with the broker yet."""
        ...

    async def is_taken(self, source: str, seq: int) -> bool:
        """Return whether a message from this place of the stream is remembered."""
        ...

    async def last_taken_of(self, source: str, *, replies: bool) -> int | None:
        """Return the highest sequence that a reply, or else a command, was taken from.

        Only messages that are remembered count, and repeats do not.
        """
        ...

    async def last_taken(self, source: str) -> int | None:
        """Return the highest sequence of the stream with an outcome here, or None."""
        ...

    async def first_not_taken(self, source: str, start: int) -> int:
        """Return the lowest sequence, from `start` on, that has no outcome here."""
        ...

    async def published(self, outlet: str) -> int:
        """Return the number of the last row that the outlet is known to have published."""
        ...

    async def oldest_unpublished(self) -> Micros | None:
        """Return when the oldest row was committed that may not be published, or None."""
        ...

    async def room(self) -> Mapping[str, int]:
        """Return the bytes of `db` (database), `wal` (its log), `free` (disk), if known."""
        ...

    async def ping(self) -> None:
        """Answer, or raise: shows that the threads that work on the database are alive."""
        ...


class Store(Reads, Protocol):
    """A database, opened by one worker."""

    @property
    def epoch(self) -> int:
        """How many workers have opened the database; written with every transaction."""
        ...

    @property
    def recovered(self) -> bool:
        """Whether the last worker left the database without closing it."""
        ...

    @property
    def restored(self) -> bool:
        """Whether the database is a copy that has to catch up with the broker."""
        ...

    @property
    def identity(self) -> str:
        """The database's id: text that all its copies share and no other database has."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def queries(self) -> Reads:
        """The reads for questions from outside; they never delay the store's own reads."""
        ...

    async def transact(self, work: Work[Result]) -> Result:
        """Do the work in the write transaction, make it durable, and return its result.

        Nothing is kept where the work raises, or where this raises `ConstraintViolated`, `Unavailable`, or `StoreLocked` because a newer
        worker has taken over. After `StoreBroken` nobody knows what is on disk: start again from there. A transaction that has begun is not
        cancelled.
        """
        ...

    async def close(self) -> None:
        """Close cleanly. Idempotent."""
        ...
