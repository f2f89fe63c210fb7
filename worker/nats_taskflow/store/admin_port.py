"""The operators' half of the store port: bounded reads across owners.

What operators are shown as it is read comes as the struct of the wire (`wire.admin_answers`). Lists are keyset pages that stop by weight,
as in `store.port`. Of several filters one is looked up in its index, and the others are applied to at most `LOOK` of its flows: a page may
then be short, or even empty, and still have a `next`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, HeldReply, Pair
from nats_taskflow.store.records import DeadLetter, Page
from nats_taskflow.units import Micros
from nats_taskflow.wire.admin_answers import InterventionShown, SetAsideFlow, WaiterShown
from nats_taskflow.wire.admin_letters import LetterShown

LOOK = 5000
"""How many flows one page looks at, at most."""

NEWEST = 200_000
"""Among how many flows, the newest, the end of an id is looked up."""


class FlowFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which flows to list; None: any.

    `topic`, `correlation_id`: flows with an open wait for it, or for both in one wait.

    `controller` may have `*` for any text; `goal` is a part of the goal's text, in any case (of ASCII).

    `changed_before`, `changed_since`: when they last changed. `due_by`: until when time acts on them. `kind`: of their wait.
    """

    status: FlowStatus | None = None
    owner: str | None = None
    controller: str | None = None
    step: str | None = None
    topic: str | None = None
    changed_before: Micros | None = None
    correlation_id: str | None = None
    changed_since: Micros | None = None
    due_by: Micros | None = None
    kind: str | None = None
    goal: str | None = None


class ReceivedReply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that was taken in for a pair.

    It says what became of the reply, and where its message lies.
    """

    event_id: str
    outcome: str
    source: str
    source_seq: int | None
    at_us: Micros


class DeadLetterGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters of one reason and subject.

    How many there are, how many of them were replayed, and the times of the first and the last.
    """

    reason: str
    subject: str
    count: int
    replayed: int
    first_us: Micros
    last_us: Micros

    def plus(self, other: DeadLetterGroup) -> DeadLetterGroup:
        """Return the group with another part of it."""
        return DeadLetterGroup(
            reason=self.reason,
            subject=self.subject,
            count=self.count + other.count,
            replayed=self.replayed + other.replayed,
            first_us=min(self.first_us, other.first_us),
            last_us=max(self.last_us, other.last_us),
        )


class DeadLetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters to list; None: any.

    `replayed`: also those that were published again.
    """

    reason: str | None = None
    subject: str | None = None
    before: Micros | None = None
    replayed: bool = True
    numbers: tuple[int, ...] | None = None


class LoggedIntervention(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator did, except to a flow: that is in the flow's own journal."""

    at_us: Micros
    actor: str
    verb: str
    about: str
    reason: str


class ParkedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of waiting flows with their positions.

    A position is when the flow parked, and its number. `next`: as in `Page`.
    """

    rows: list[tuple[tuple[int, int], Flow]]
    next: tuple[int, int] | None


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the whole database at one moment.

    `due`: flows that time is due to act on, counted up to 10,000.

    `most`: by quota, the agent whose flows use most of it, and how much.
    """

    counts: dict[str, int]
    set_aside: int
    due: int
    next_due: Micros | None
    oldest_wait: tuple[str, Micros] | None
    unpublished_events: int
    unpublished_dead_letters: int
    dead_letters: int
    outgoing: int
    outgoing_attempts: int
    epoch: int
    most: dict[str, tuple[str, int]]


class AdminReads(Protocol):
    """What operators can ask the database."""

    async def find_flows(self, filters: FlowFilter, *, limit: int, after: int | None = None) -> Page[Flow]:
        """List flows, newest first.

        Rows that cannot be read are left out: see `set_aside`.
        """
        ...

    async def parked(self, filters: FlowFilter, *, parked_before: Micros | None, limit: int, after: tuple[int, int] | None) -> ParkedPage:
        """List waiting flows, the longest-waiting first."""
        ...

    async def set_aside(self, *, limit: int, after: int | None = None) -> Page[SetAsideFlow]:
        """List the flows that are set aside."""
        ...

    async def set_aside_flow(self, flow_id: str) -> SetAsideFlow | None:
        """Return the flow if it is set aside, else None."""
        ...

    async def find_ids(self, part: str, limit: int) -> list[str]:
        """List flow ids that begin or end with `part`, at most `limit` of each.

        Ends are compared among the newest `NEWEST` only.
        """
        ...

    async def waiters(self, topic: str, correlation_id: str | None, limit: int) -> list[WaiterShown]:
        """List the open waits on a topic, or for a pair, at most `limit`."""
        ...

    async def awaited_pairs(self, flow_id: str, limit: int) -> list[Pair]:
        """List the pairs that a flow waits for or has waited for, each once.

        The newest come first. Only its last `limit` waits are looked at.
        """
        ...

    async def held_replies(
        self, *, topic: str | None = None, correlation_id: str | None = None, limit: int, after: int | None = None, payloads: bool = True
    ) -> Page[HeldReply]:
        """List held replies in the order they came, with their `payloads` or without.

        They are of a topic, a correlation id, or both. Unreadable ones are left out.
        """
        ...

    async def held_reply(self, number: int) -> HeldReply | None:
        """Return a held reply by its number, or None."""
        ...

    async def received_replies(self, pair: Pair, limit: int) -> list[ReceivedReply]:
        """List replies that were taken in for the pair, at most `limit`."""
        ...

    async def letter_number(self, stream: str, seq: int) -> int | None:
        """Return the number of the dead letter that was this message of a stream, or None."""
        ...

    async def letter_groups(self, limit: int, before: Micros | None = None) -> list[DeadLetterGroup]:
        """Count the dead letters by reason and subject, at most `limit` groups.

        `before`: only those that died before this time.
        """
        ...

    async def letters(
        self, filters: DeadLetterFilter, *, limit: int, after: int | None = None, up_to: int | None = None
    ) -> Page[LetterShown]:
        """List dead letters without headers and body, oldest first.

        Their numbers are above `after` and not above `up_to`.
        """
        ...

    async def letter(self, number: int) -> LetterShown | None:
        """Return a dead letter with its headers and body, or None."""
        ...

    async def stored_letter(self, number: int) -> DeadLetter | None:
        """Return a dead letter as it came, to the byte, or None.

        It has how often it was replayed.
        """
        ...

    async def last_letter(self) -> int:
        """Return the number of the newest dead letter, 0 where there is none."""
        ...

    async def outgoing_of(self, flow_id: str) -> tuple[str, int, Micros] | None:
        """Return a request to a delegate that was not sent yet, or None.

        It is returned as its subject, the tries so far and the time of the next.
        """
        ...

    async def interventions(self, *, limit: int, after: int | None = None) -> Page[InterventionShown]:
        """List what operators did, newest first."""
        ...

    async def gauges(self, now: Micros) -> Gauges:
        """Return the figures of the database."""
        ...
