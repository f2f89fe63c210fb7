"""The store port: what the worker needs of a database, with every promise written down.

Adapter: `store.sqlite`. The port must also fit PostgreSQL with several workers, so nothing of SQLite shows here, and every
transaction carries the epoch of the worker that writes: one that a newer worker has fenced off cannot commit.
Reads see committed rows only, and all that was committed before they began.
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
    """A constraint of the database refused the batch; nothing of it was kept. Try its parts one by one."""


class LostRace(ConstraintViolated):
    """A flow is not as the batch saw it: another process changed it. Load it again."""


class TooHeavy(Exception):
    """What was to be loaded weighs more than it may. Nothing was changed: load less."""


class Transaction(Protocol):
    """What a piece of work can do in the one write transaction. It runs on the connection's own thread."""

    def load(self, needs: Needs, now: Micros) -> Loaded:
        """Load what is named, and what hangs on it: waiters' flows, held replies. Rows that cannot be read are named in the world.

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
        """Delete terminal flows last changed before `older_than`, with all their rows, at most `limit`; never one with an
        unpublished event. Their ids stay known (`tombstones`). Returns how many.
        """
        ...

    def prune_tombstones(self, before: Micros, limit: int) -> int:
        """Forget the ids of flows that were last changed before `before` and pruned since. Returns how many."""
        ...

    def prune_inbox(self, source: str, before_seq: int, before: Micros, limit: int) -> int:
        """Forget messages that their stream no longer keeps, and requests on `api` from before `before`. Returns how many."""
        ...

    def mark_published(self, outlet: str, n: int) -> None:
        """Note that everything of the outlet (`events`, `dead_letters`) up to row `n` is stored by the broker."""
        ...

    def suspects(self, source: str, above: int, up_to: int, born: str, *, replies: bool) -> Suspects:
        """Say which messages of a source in (above, up_to], replies or others, have no outcome, so that they may have been begun.

        Attempts that were noted while the source had another `born` are forgotten: they were of other messages.
        """
        ...

    def note_attempts(self, places: Sequence[tuple[str, int]]) -> None:
        """Count one more attempt of each of these suspects, by source and sequence."""
        ...

    def forget_restored(self) -> None:
        """Note that a restored database has caught up."""
        ...

    def settle_outgoing(self, sent: Sequence[tuple[int, int, Micros]], later: Sequence[tuple[int, Micros]]) -> None:
        """Forget notices that were sent, and keep requests until their waits are over; try the others again at their times.

        With what was sent comes how often it had been tried: one that was refused meanwhile counts once more, and goes again at its time.
        """
        ...

    def release(self, flow_id: str) -> Flow | None:
        """Set a flow that was set aside free again, so that time and replies reach it; returns it, None where it is not set aside.

        Raises `Conflict` where its row still cannot be read.
        """
        ...

    def note_replayed(self, number: int, actor: str, now: Micros) -> bool:
        """Note that a dead letter was published again; returns whether there is such a letter."""
        ...

    def purge_letters(self, numbers: Sequence[int]) -> int:
        """Delete dead letters, but none that is not published yet; returns how many went."""
        ...

    def note_intervention(self, done: LoggedIntervention) -> None:
        """Keep what an operator did."""
        ...


Result = TypeVar("Result")
Work = Callable[[Transaction], Result]
"""What is done in one transaction: all of it is kept, or nothing. It knows no event loop and must not touch what lives on one."""


class Reads(AdminReads, Protocol):
    """What can be asked. Lists are keyset pages: at most `limit` rows after the cursor `after` (None: from the start), and no more of them
    than weigh `PAGE_BYTES` and one row: whoever wants all goes on until `next` is None.
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
        """List the flows due by `now`, at most `limit`, and count those that wait, in one question: a tick has nothing else to ask.

        Agents take turns: each one's earliest comes before anybody's second.

        `decided`: every reply that came until then is decided. A flow that is due since later, and that a reply could still resume, is
        not listed. None: every reply is.
        """
        ...

    async def next_due(self) -> Micros | None:
        """Return when the next flow is due, or None."""
        ...

    async def counts(self) -> dict[str, int]:
        """Return the maintained counters: `flows.<status>`, `inbox.<outcome>`, `held`."""
        ...

    async def unpublished_events(self, after: int, limit: int) -> list[NumberedEvent]:
        """List journal entries with a number above `after`, in order: at most `limit`, and fewer where they weigh more than a page may."""
        ...

    async def unpublished_dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """List dead letters with a number above `after`, in order; bounded as `unpublished_events` is."""
        ...

    async def outgoing_due(self, now: Micros, limit: int) -> list[DueOutgoing]:
        """List the messages to delegates that are to be sent by `now`: in turns between agents, each one's in the order of their commits.

        At most `limit`, and fewer where they weigh more than a page may.
        """
        ...

    async def next_outgoing(self) -> Micros | None:
        """Return when the next message to a delegate is to be sent, or None."""
        ...

    async def was_restored(self) -> bool:
        """Tell whether this is a copy of a database whose worker has not caught up with the broker yet."""
        ...

    async def is_taken(self, source: str, seq: int) -> bool:
        """Tell whether a message was taken in from this place of the stream, and is remembered."""
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
        """Return up to which row the outlet is known to be published."""
        ...

    async def oldest_unpublished(self) -> Micros | None:
        """Return when the oldest row was committed that no outlet is known to have published, or None."""
        ...

    async def room(self) -> Mapping[str, int]:
        """Return bytes: of the database (`db`) and of its log (`wal`), and how many are left on its disk (`free`); what is known of it."""
        ...

    async def ping(self) -> None:
        """Answer, or raise: shows that every thread that works on the database is alive."""
        ...


class Store(Reads, Protocol):
    """A database, opened by one worker."""

    @property
    def epoch(self) -> int:
        """How many workers have opened the database so far; written with every transaction."""
        ...

    @property
    def recovered(self) -> bool:
        """Whether the last worker left the database without closing it."""
        ...

    @property
    def restored(self) -> bool:
        """Whether the database is a copy, and what the broker was told since is to be asked for again."""
        ...

    @property
    def identity(self) -> str:
        """Which database it is: text that every copy of it shares, and no other database has."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def queries(self) -> Reads:
        """The reads for whoever asks from outside: no question of theirs delays those of the store itself, which timers and relays ask."""
        ...

    async def transact(self, work: Work[Result]) -> Result:
        """Do the work in the one write transaction and make it durable; returns what the work returns.

        Nothing of it is kept where the work raises, or this raises `ConstraintViolated`, `Unavailable`, or `StoreLocked` when a newer
        worker has taken over. After `StoreBroken` nobody knows: start again from disk. Once it has begun, it is not cancelled.
        """
        ...

    async def close(self) -> None:
        """Close cleanly. Idempotent."""
        ...
