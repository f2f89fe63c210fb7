"""Bound how many replies are held, for each tenant and for all together.

See RELIABILITY 4, row 52. A tenant is the reply binding that covers a topic, or the agent whose built-in topic it is. Within a tenant a
topic stands for its sender: whoever may publish there.

A tenant over its quota pays for a new reply with one of its own, from the topic that would hold most of them. Over the quota of all, the
tenant that holds most pays in the same way. The reply that goes is always the one that would expire first. So a flood displaces its own
replies and nobody else's. A displaced reply gets an outcome (`expired`) and a dead letter, like one for which nobody came.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nats_taskflow.flow.model import HeldReply
from nats_taskflow.flow.policy import Policy

AT_ONCE = 2
"""How many replies a new one may displace: more than one, or a lowered quota would never be met."""


Sender = tuple[str, str]
"""(tenant, topic)."""


class DisplacedReply(msgspec.Struct, frozen=True):
    """A held reply that makes room for another, and the sentence of its dead letter."""

    held: HeldReply
    message: str


class HeldCounts(msgspec.Struct):
    """How many replies are held, in all (`total`) and by tenant (`of`).

    They are also counted by topic, for the tenants that matter to a batch. `first`: the replies that expire first, by sender and in that
    order; they may lack their payload.
    """

    total: int = 0
    of: dict[str, int] = msgspec.field(default_factory=dict)
    topics: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    first: dict[Sender, list[HeldReply]] = msgspec.field(default_factory=dict)

    def add(self, held: HeldReply) -> None:
        """Count a reply that is held from now on; it expires after all others."""
        self._count(held, 1)
        self.first.setdefault((held.tenant, held.topic), []).append(held)

    def remove(self, held: HeldReply) -> None:
        """Count a reply that is no longer held."""
        self._count(held, -1)
        first = self.first.get((held.tenant, held.topic), [])
        first[:] = [other for other in first if other.key != held.key]

    def _count(self, held: HeldReply, by: int) -> None:
        """Add to all three counts."""
        self.total += by
        self.of[held.tenant] = self.of.get(held.tenant, 0) + by
        topics = self.topics.setdefault(held.tenant, {})
        topics[held.topic] = topics.get(held.topic, 0) + by


def displace(new: HeldReply, holdings: HeldCounts, policy: Policy) -> tuple[DisplacedReply, ...]:
    """Return the held replies that make room for a new one."""
    replies: list[DisplacedReply] = []
    for _ in range(AT_ONCE):
        leaving = [displaced.held for displaced in replies]
        counts = {tenant: count - sum(held.tenant == tenant for held in leaving) for tenant, count in holdings.of.items()}
        if counts.get(new.tenant, 0) >= policy.max_held_of_tenant:
            payer, quota, whose = new.tenant, policy.max_held_of_tenant, f"of {new.tenant} " if new.tenant else ""
        elif holdings.total - len(leaving) >= policy.max_held:
            payer, quota, whose = max(holdings.topics, key=lambda tenant: counts.get(tenant, 0), default=""), policy.max_held, ""
        else:
            break
        held = _first_of(payer, new, holdings, leaving)
        if held is None:
            break
        replies.append(
            DisplacedReply(held, f"the quota of {quota} held replies {whose}is used up: this one, the first to expire, made room")
        )
    return tuple(replies)


def _first_of(tenant: str, new: HeldReply, holdings: HeldCounts, leaving: Sequence[HeldReply]) -> HeldReply | None:
    """Return the next reply that a tenant over its quota loses.

    It is of the topic that would hold most; of several such topics, the new reply's own.
    """
    keys = {held.key for held in leaving}
    paying: tuple[tuple[int, bool], HeldReply] | None = None
    for topic, count in holdings.topics.get(tenant, {}).items():
        held = next((held for held in holdings.first.get((tenant, topic), ()) if held.key not in keys), None)
        own = (tenant, topic) == (new.tenant, new.topic)
        rank = count - sum((other.tenant, other.topic) == (tenant, topic) for other in leaving) + own, own
        if held is not None and (paying is None or rank > paying[0]):
            paying = rank, held
    return paying[1] if paying is not None else None
