"""The structs of the store: messages taken in, batches to write, pages to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from nats_taskflow.flow.decision import OutcomeName
from nats_taskflow.flow.held_quota import Sender
from nats_taskflow.flow.model import DelegateMessage, Flow, FlowEvent, FlowStep, HeldReply, Pair, Waiter
from nats_taskflow.flow.usage import Usage
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND, Micros

InboxKey = tuple[str, str]
"""(scope, key): the identity of a message; scopes are `cmd:<agent>` and `reply`."""

Place = tuple[str, int]
"""(stream, sequence): where a message lies."""


RETRY_DELAYS: tuple[Micros, Micros] = (SECOND // 4, 30 * SECOND)
"""After how long a message to a delegate is sent again: the first time, and at most. The delay doubles each time."""


class InboxRow(msgspec.Struct, frozen=True, kw_only=True):
    """One message taken in, and what became of it (SEMANTICS R14).

    `key` is None for repeats and for messages without an identity.

    `result` is the answer to a repeat, byte for byte.
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
    """A message that could not be used, whole, and why.

    `n` is given by the store, and `replays` counted by it.
    """

    reason: str
    message: str
    subject: str
    stream: str
    seq: int | None
    headers: dict[str, str]
    body: bytes
    at_us: Micros
    n: int = 0
    replays: int = 0


class Needs(msgspec.Struct, kw_only=True):
    """What a batch looks at, so that a few statements load it all.

    `new`: ids under which flows start, and which no flow may have had before.
    `pairs`: those that replies came for. `parking`: those that waits are opened for, which may take held replies.
    `watched`: flows whose watchers are needed. `parents`: flows whose children are, at most `followers` of each.
    `held`: keys of held replies that an operator handles.
    `holding`: how many replies of each tenant's topics may have to be held. Where that could exceed `max_held` or, of one tenant,
    `max_held_of_tenant`, the held replies that would make room are loaded too.
    `agents`: those whose quotas of open flows and of states may be exceeded.
    `max_bytes`: how much the states and outcomes that are loaded may weigh.
    """

    flows: set[str] = msgspec.field(default_factory=set)
    new: set[str] = msgspec.field(default_factory=set)
    pairs: set[Pair] = msgspec.field(default_factory=set)
    parking: set[Pair] = msgspec.field(default_factory=set)
    watched: set[str] = msgspec.field(default_factory=set)
    parents: set[str] = msgspec.field(default_factory=set)
    followers: int = 0
    keys: set[tuple[str, str]] = msgspec.field(default_factory=set)
    steps: set[tuple[str, str]] = msgspec.field(default_factory=set)
    inbox: set[InboxKey] = msgspec.field(default_factory=set)
    places: set[Place] = msgspec.field(default_factory=set)
    held: set[str] = msgspec.field(default_factory=set)
    holding: dict[Sender, int] = msgspec.field(default_factory=dict)
    max_held: int = 2**62
    max_held_of_tenant: int = 2**62
    agents: set[str] = msgspec.field(default_factory=set)
    max_bytes: int = 2**62


class Loaded(msgspec.Struct, kw_only=True):
    """What was loaded: the world to decide on, and the messages already known.

    Messages are known by identity and by place. A place may have had two messages: a stream that was deleted and created anew counts from 1
    again. `more_held`: pairs for which more replies are held than were loaded. `unseen`: pairs of which none was loaded. `more_watchers`:
    flows that ended have more watchers than were loaded. `children_left`: how many more children a parent has.
    """

    world: World
    more_held: set[Pair] = msgspec.field(default_factory=set)
    unseen: set[Pair] = msgspec.field(default_factory=set)
    more_watchers: bool = False
    children_left: dict[str, int] = msgspec.field(default_factory=dict)
    inbox: dict[InboxKey, InboxRow] = msgspec.field(default_factory=dict)
    places: dict[Place, list[InboxRow]] = msgspec.field(default_factory=dict)


class FlowWrite(msgspec.Struct, frozen=True, kw_only=True):
    """A flow to store.

    `was` is its row before the batch (None: new), against which the write is checked.
    """

    flow: Flow
    was: Flow | None
    due_us: Micros | None
    idempotency_key: str | None = None


class UnfinishedEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a flow that has not reached all its watchers yet.

    With `cascade`, it has not reached all its children either.
    """

    flow_id: str
    cascade: bool
    trace: str | None = None


class Suspects(msgspec.Struct, frozen=True, kw_only=True):
    """The window of a consumer in which a run that was killed may have begun messages.

    `known`: those that have their outcome. `counts`: how often each was begun, of those that were noted.
    """

    above: int
    up_to: int
    known: set[int]
    counts: dict[int, int]

    def begun(self, seq: int) -> int:
        """Return how often a message may have been begun; 0 where it is no suspect."""
        return self.counts.get(seq, 1) if self.above < seq <= self.up_to and seq not in self.known else 0


NO_SUSPECTS = Suspects(above=0, up_to=0, known=set(), counts={})


class Batch(msgspec.Struct, kw_only=True):
    """All that a transaction writes, in the order it was decided.

    `displaced`: held replies that make room, by key, with the message of their dead letter.
    `usages`: by agent, how much more its flows use. `first_event`: the number of its first journal entry, once it is saved; the others
    follow without a gap.
    `refused`: waits (flow, generation) whose requests were refused after they were sent, and why. `unfinished`: ends of flows to follow up
    later. `followed_up`: flows whose end needs nothing more.
    `set_aside`: flows whose rows cannot be read, and why; timers pass them over (SEMANTICS R13).
    """

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
    spoiled: list[tuple[HeldReply, DeadLetter, bytes]] = msgspec.field(default_factory=list)
    displaced: list[tuple[str, str]] = msgspec.field(default_factory=list)
    outgoing: list[DelegateMessage] = msgspec.field(default_factory=list)
    refused: list[tuple[str, int, str]] = msgspec.field(default_factory=list)
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    usages: dict[str, Usage] = msgspec.field(default_factory=dict)
    first_event: int = 0
    unfinished: list[UnfinishedEnd] = msgspec.field(default_factory=list)
    followed_up: list[str] = msgspec.field(default_factory=list)
    set_aside: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def letters(self) -> Iterator[DeadLetter]:
        """The dead letters of a batch.

        They are of messages that came, and of held replies that their waits do not accept.
        """
        yield from self.dead
        for _, letter, _ in self.spoiled:
            yield letter

    @property
    def adds_dead_letters(self) -> bool:
        """Whether the batch adds to the dead letters."""
        return bool(self.dead or self.spoiled or self.displaced)

    def count(self, name: str, by: int) -> None:
        """Add to a maintained counter."""
        self.counts[name] = self.counts.get(name, 0) + by

    def count_flow(self, flow: Flow, by: int) -> None:
        """Add to the counters of the flow's status and of the kind of its wait."""
        counts, status = self.counts, f"flows.{flow.status.value}"
        counts[status] = counts.get(status, 0) + by
        if flow.wait_json is not None:
            kind = f"waits.{flow.wait_json['kind']}"
            counts[kind] = counts.get(kind, 0) + by


class NumberedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A journal entry with its number, and what its published form needs of the flow.

    The number is that in the whole journal. `event` is None where the entry cannot be read.
    """

    n: int
    flow_id: str
    event: FlowEvent | None
    controller_id: str
    owner_session_key: str


class DueOutgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A message to a delegate, its row, and how often it was tried.

    It has the part of its id that only the worker and the delegate know.
    """

    n: int
    attempts: int
    nonce: str
    message: DelegateMessage


class DueFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting flow that time is due to act on.

    `wait_id` is None where the row is not one that waits.
    """

    flow_id: str
    wait_id: int | None
    due_us: Micros


class DueFlows(msgspec.Struct, frozen=True, kw_only=True):
    """What a tick asks for.

    How many flows wait, those that are due, and ends of flows to follow up. Agents take turns, each with its earliest flow first.
    `held_back`: others are due, but a reply could still resume them.
    """

    waiting: int
    flows: list[DueFlow]
    held_back: bool = False
    ends: list[UnfinishedEnd] = msgspec.field(default_factory=list)


ALL = 2**62
"""No limit."""

Row = TypeVar("Row")


class Page(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """Rows with their positions in the list.

    `next` is the position after which the next page goes on, None at the end.
    """

    rows: list[tuple[int, Row]]
    next: int | None

    @property
    def items(self) -> list[Row]:
        """The rows alone."""
        return [row for _, row in self.rows]
