"""The store port: what the worker needs of a database, with every promise written down.

The adapter is `store.sqlite`. PostgreSQL with several workers must fit as well, so nothing of SQLite shows here. Every transaction carries
the epoch of the worker that writes: a worker that a newer one has fenced off cannot commit. Reads see committed rows only, and all that
was committed before they began.
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
    """A constraint of the database refused the batch, and nothing of it was kept. Try its parts one by one."""


class LostRace(ConstraintViolated):
    """A flow is not as the batch saw it: another process changed it. Load it again."""


class TooHeavy(Exception):
    """What was to be loaded weighs more than it may. Nothing was changed: load less."""


class Transaction(Protocol):
    """What a piece of work can do in the write transaction. It runs on the connection's own thread."""

    def load(self, needs: Needs, now: Micros) -> Loaded:
        """Load what is named, and what belongs to it: waiters' flows, held replies. Rows that cannot be read are named in the world.

        Raises `TooHeavy` as soon as states and stored outcomes weigh more than `needs.max_bytes`.
        """
        ...

    def save(self, batch: Batch) -> None:
        """Write the batch, and number its journal entries.

        Raises `ConstraintViolated` where a rule is broken, `LostRace` where a flow is not as the batch saw it.
        """
        ...

    def expire_held(self, now: Micros, limit: int) -> int:
        """Turn expired held replies into dead letters (`expired`), at most `limit`; returns how many (SEMANTICS R4)."""
        ...

    def prune_flows(self, older_than: Micros, limit: int) -> int:
        """Delete flows that ended, and last changed, before `older_than`, with all their rows, at most `limit`. Returns how many.

        One with an event that is not published stays. Their ids stay known (`tombstones`).
        """
        ...

    def prune_tombstones(self, before: Micros, limit: int) -> int:
        """Forget the ids of flows that were last changed before `before` and pruned since. Returns how many."""
        ...

    def prune_inbox(self, source: str, before_seq: int, before: Micros, limit: int) -> int:
        """Forget messages that their stream no longer keeps, and requests on `api` older than `before`. Returns how many."""
        ...

    def mark_published(self, outlet: str, n: int) -> None:
        """Note that the broker has stored everything of the outlet (`events`, `dead_letters`) up to row `n`."""
        ...

    def suspects(self, source: str, above: int, up_to: int, born: str, *, replies: bool) -> Suspects:
        """Return which messages of a source in (above, up_to], replies or others, have no outcome: they may have been begun.

        Attempts that were noted while the source had another `born` are forgotten: they were of another stream's messages.
        """
        ...

    def note_attempts(self, places: Sequence[tuple[str, int]]) -> None:
        """Count one more attempt at each of these suspects, by source and sequence."""
        ...

    def forget_restored(self) -> None:
        """Note that a restored database has caught up."""
        ...

    def settle_outgoing(self, sent: Sequence[tuple[int, int, Micros]], later: Sequence[tuple[int, Micros]]) -> None:
        """Forget the notices that were sent, keep the requests until their waits are over, and postpone the others to their times.

        `sent`: row, attempts so far, and when to send again a request that was refused meanwhile: that counts as one more attempt.
        """
        ...

    def release(self, flow_id: str) -> Flow | None:
        """Let time and replies reach a flow again that was set aside. Returns it, None where it is not set aside.

        Raises `Conflict` where its row still cannot be read.
        """
        ...

    def note_replayed(self, number: int, actor: str, now: Micros) -> bool:
        """Note that a dead letter was published again. Returns whether there is such a letter."""
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
    """What can be asked. Lists are keyset pages: at most `limit` rows after the position `after` (None: from the start), and no more than
    weigh half a MiB and one row. To read all, go on until `next` is None.
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
        """List journal entries, oldest first or newest first; their position is their `seq`."""
        ...

    async def outcome(self, scope: str, key: str) -> InboxRow | None:
        """Return what became of a message, or None."""
        ...

    async def due(self, now: Micros, limit: int, decided: Micros | None = None) -> DueFlows:
        """List the flows due by `now`, at most `limit`, and count those that wait: all that a tick asks, in one statement.

        Agents take turns: the earliest flow of each comes before the second of any.

        `decided`: every reply that came until then is decided. A flow that became due later, and that a reply could still resume, is
        held back. None: every reply is decided.
        """
        ...

    async def next_due(self) -> Micros | None:
        """Return when the next flow is due, or None."""
        ...

    async def counts(self) -> dict[str, int]:
        """Return the maintained counters: `flows.<status>`, `inbox.<outcome>`, `held`."""
        ...

    async def unpublished_events(self, after: int, limit: int) -> list[NumberedEvent]:
        """List journal entries with numbers above `after`, in order: at most `limit`, and fewer where they weigh more than a page may."""
        ...

    async def unpublished_dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """List dead letters with numbers above `after`, in order; bounded as `unpublished_events` is."""
        ...

    async def outgoing_due(self, now: Micros, limit: int) -> list[DueOutgoing]:
        """List the messages to delegates that are due by `now`: agents take turns, each with its messages in the order of their commits.

        At most `limit`, and fewer where they weigh more than a page may.
        """
        ...

    async def next_outgoing(self) -> Micros | None:
        """Return when the next message to a delegate is to be sent, or None."""
        ...

    async def was_restored(self) -> bool:
        """Return whether this is a copy of a database whose worker has not caught up with the broker yet."""
        ...

    async def is_taken(self, source: str, seq: int) -> bool:
        """Return whether a message was taken in from this place of the stream, and is remembered."""
        ...

    async def last_taken_of(self, source: str, *, replies: bool) -> int | None:
        """Return the highest sequence of the stream that a reply, or a command, was taken from, and is remembered; repeats do not count."""
        ...

    async def last_taken(self, source: str) -> int | None:
        """Return the highest sequence of the stream `source` that has its outcome here; None where none has."""
        ...

    async def first_not_taken(self, source: str, start: int) -> int:
        """Return the lowest sequence of the stream, from `start` on, that has no outcome here."""
        ...

    async def published(self, outlet: str) -> int:
        """Return the number of the last row that the outlet is known to have published."""
        ...

    async def oldest_unpublished(self) -> Micros | None:
        """Return when the oldest row was committed that is not known to be published, or None."""
        ...

    async def room(self) -> Mapping[str, int]:
        """Return the bytes of the database (`db`) and its log (`wal`), and how many are left on the disk (`free`), as far as known."""
        ...

    async def ping(self) -> None:
        """Answer, or raise: shows that the threads that work on the database are alive."""
        ...


class Store(Reads, Protocol):
    """A database, opened by one worker."""

    @property
    def epoch(self) -> int:
        """How many workers have opened the database so far. Written with every transaction."""
        ...

    @property
    def recovered(self) -> bool:
        """Whether the last worker left the database without closing it."""
        ...

    @property
    def restored(self) -> bool:
        """Whether the database is a copy, and has to catch up with what the broker has stored since."""
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
        """The reads for questions from outside: none of them delays the reads of the store itself, which timers and relays use."""
        ...

    async def transact(self, work: Work[Result]) -> Result:
        """Do the work in the write transaction, make it durable, and return what the work returns.

        Nothing is kept where the work raises, or where this raises `ConstraintViolated`, `Unavailable`, or `StoreLocked` because a newer
        worker has taken over. After `StoreBroken` nobody knows what is on disk: start again from there. A transaction that has begun is
        not cancelled.
        """
        ...

    async def close(self) -> None:
        """Close cleanly. Idempotent."""
        ...
