"""The store port: what the worker needs of a database, with every promise written down.

Adapter: `store.sqlite`. The port must also fit PostgreSQL with several workers, so nothing of SQLite shows here, and every
transaction carries the epoch of the worker that writes: one that a newer worker has fenced off cannot commit.
Reads see committed rows only, and all that was committed before they began.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from worker.flow.decision import OutcomeName
from worker.flow.lifecycle import FlowStatus
from worker.flow.model import Flow, FlowEvent, FlowStep, HeldReply, Pair, Waiter
from worker.flow.world import World
from worker.times import Micros

InboxKey = tuple[str, str]
"""(scope, key): the identity of a message; scopes are `cmd:<agent>` and `reply`."""

Place = tuple[str, int]
"""(stream, sequence): where a message lies."""


class ConstraintViolated(Exception):
    """A constraint of the database refused the batch; nothing of it was kept. Try its parts one by one."""


class LostRace(ConstraintViolated):
    """A flow is not as the batch saw it: another process changed it. Load it again."""


class InboxRow(msgspec.Struct, frozen=True, kw_only=True):
    """One message taken in and what became of it (SEMANTICS R14). `key` is None for repeats and for what has no identity.

    `result` is what a repeat is answered with, byte for byte.
    """

    scope: str | None
    key: str | None
    digest: bytes
    outcome: OutcomeName
    result: bytes
    source: str
    source_seq: int | None
    at_us: Micros


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not be used, whole, and why. `n` is given by the store."""

    reason: str
    message: str
    subject: str
    stream: str
    seq: int | None
    headers: dict[str, str]
    body: bytes
    at_us: Micros
    n: int = 0


class Needs(msgspec.Struct, kw_only=True):
    """What a batch looks at, so that it is loaded in a few statements.

    `pairs`: those that replies came for; `parking`: those that waits are opened for, which may take held replies.
    """

    flows: set[str] = msgspec.field(default_factory=set)
    pairs: set[Pair] = msgspec.field(default_factory=set)
    parking: set[Pair] = msgspec.field(default_factory=set)
    keys: set[tuple[str, str]] = msgspec.field(default_factory=set)
    steps: set[tuple[str, str]] = msgspec.field(default_factory=set)
    inbox: set[InboxKey] = msgspec.field(default_factory=set)
    places: set[Place] = msgspec.field(default_factory=set)


class Loaded(msgspec.Struct, kw_only=True):
    """What was found: the world to decide on, and the messages known by identity and by place."""

    world: World
    inbox: dict[InboxKey, InboxRow] = msgspec.field(default_factory=dict)
    places: dict[Place, InboxRow] = msgspec.field(default_factory=dict)


class FlowWrite(msgspec.Struct, frozen=True, kw_only=True):
    """A flow to store. `was` is its row before the batch (None: new), against which the write is checked."""

    flow: Flow
    was: Flow | None
    due_us: Micros | None
    idempotency_key: str | None = None


class Batch(msgspec.Struct, kw_only=True):
    """All that a transaction writes, in the order it was decided."""

    flows: list[FlowWrite] = msgspec.field(default_factory=list)
    events: list[FlowEvent] = msgspec.field(default_factory=list)
    steps: list[FlowStep] = msgspec.field(default_factory=list)
    opened: list[tuple[Waiter, bool]] = msgspec.field(default_factory=list)
    closed: list[tuple[str, int]] = msgspec.field(default_factory=list)
    satisfied: list[tuple[str, int, int]] = msgspec.field(default_factory=list)
    held: list[HeldReply] = msgspec.field(default_factory=list)
    taken: list[tuple[HeldReply, OutcomeName, bytes]] = msgspec.field(default_factory=list)
    inbox: list[InboxRow] = msgspec.field(default_factory=list)
    dead: list[DeadLetter] = msgspec.field(default_factory=list)
    counts: dict[str, int] = msgspec.field(default_factory=dict)

    def count(self, name: str, by: int) -> None:
        """Add to a maintained counter."""
        self.counts[name] = self.counts.get(name, 0) + by


class Transaction(Protocol):
    """One write transaction. The caller ends it with exactly one of `commit` and `rollback`."""

    async def load(self, needs: Needs, now: Micros) -> Loaded:
        """Load what is named, and what hangs on it: waiters' flows, held replies. Rows that cannot be read are named in the world."""
        ...

    async def save(self, batch: Batch) -> None:
        """Write the batch. Raises `ConstraintViolated`, also where a flow is not as the batch saw it."""
        ...

    async def expire_held(self, now: Micros, limit: int) -> int:
        """Turn expired held replies into dead letters (`expired`), at most `limit`; returns how many (SEMANTICS R4)."""
        ...

    async def prune_flows(self, older_than: Micros, limit: int) -> int:
        """Delete terminal flows last changed before `older_than`, with all their rows, at most `limit`; never one with an
        unpublished event. Returns how many.
        """
        ...

    async def prune_inbox(self, source: str, before_seq: int, before: Micros, limit: int) -> int:
        """Forget messages that their stream no longer keeps, and requests on `api` from before `before`. Returns how many."""
        ...

    async def set_aside(self, flow_id: str, why: str) -> None:
        """Take a flow whose row cannot be read out of the timers' way, and keep the reason (SEMANTICS R13)."""
        ...

    async def mark_published(self, outlet: str, n: int) -> None:
        """Note that everything of the outlet (`events`, `dead_letters`) up to row `n` is stored by the broker."""
        ...

    async def suspect(self, source: str, above: int, up_to: int) -> dict[int, int]:
        """Note that every message of `source` in (above, up_to] that has no outcome may have been begun; returns seq → attempts."""
        ...

    async def note_attempt(self, source: str, seq: int) -> None:
        """Count one more attempt of a message."""
        ...

    async def commit(self) -> None:
        """Make it durable. Raises `Unavailable` (nothing was kept) or `StoreBroken` (state unknown: start again from disk)."""
        ...

    async def rollback(self) -> None:
        """Undo everything. Never raises."""
        ...


class Numbered(msgspec.Struct, frozen=True, kw_only=True):
    """A journal entry with its place in the whole journal and what its published form needs of the flow.

    `event` is None where the entry cannot be read.
    """

    n: int
    flow_id: str
    event: FlowEvent | None
    controller_id: str
    owner_session_key: str


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting flow that time is due to act on. `wait_id` is None where the row is not one that waits."""

    flow_id: str
    wait_id: int | None
    due_us: Micros


ALL = 2**62
"""A limit that is none."""

Row = TypeVar("Row")


class Page(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """Rows with their positions in the list's order; `next` is the cursor of what follows, None at the end."""

    rows: list[tuple[int, Row]]
    next: int | None

    @property
    def items(self) -> list[Row]:
        """The rows alone."""
        return [row for _, row in self.rows]


class Reads(Protocol):
    """What can be asked. Lists are keyset pages: at most `limit` rows after the cursor `after` (None: from the start)."""

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

    async def list_events(self, flow_id: str, *, limit: int, after: int | None = None) -> Page[FlowEvent]:
        """List journal entries, oldest first; their position is their `seq`."""
        ...

    async def outcome(self, scope: str, key: str) -> InboxRow | None:
        """Return what became of a message, or None."""
        ...

    async def due(self, now: Micros, limit: int) -> list[Due]:
        """List the flows due by `now`, earliest first."""
        ...

    async def next_due(self) -> Micros | None:
        """Return when the next flow is due, or None."""
        ...

    async def counts(self) -> dict[str, int]:
        """Return the maintained counters: `flows.<status>`, `inbox.<outcome>`, `held`."""
        ...

    async def unpublished_events(self, after: int, limit: int) -> list[Numbered]:
        """List journal entries with a number above `after`, in order."""
        ...

    async def unpublished_dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """List dead letters with a number above `after`, in order."""
        ...

    async def published(self, outlet: str) -> int:
        """Return up to which row the outlet is known to be published."""
        ...

    async def highest_place(self, source: str) -> int:
        """Return the highest stream sequence taken in from `source`, 0 for none."""
        ...

    async def ping(self) -> None:
        """Answer, or raise: shows that the database thread is alive."""
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
    def place(self) -> str:
        """Where it is, for people."""
        ...

    async def begin(self) -> Transaction:
        """Start the one write transaction. Raises `Unavailable`, or `StoreLocked` when a newer worker has taken over."""
        ...

    async def close(self) -> None:
        """Close cleanly. Idempotent."""
        ...


Chore = Callable[[Transaction], Awaitable[Any]]
"""Housekeeping that runs in a transaction of its own, between batches."""
