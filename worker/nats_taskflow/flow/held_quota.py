"""Bound how many replies are held: a quota for each tenant and one for all (RELIABILITY 4, row 52).

A tenant is the reply binding that a topic is covered by, or the agent whose built-in topic it is. Within a tenant a topic stands for its
sender: whoever may publish there. Over its quota a tenant pays for its new reply with one of its own, of the topic that would hold most of
them; over the quota of all, the tenant that holds most pays, likewise. It is always the one that would expire first. So a flood displaces
its own replies and nobody else's; each displaced reply has an outcome (`expired`) and a dead letter like any other that nobody came for.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nats_taskflow.flow.model import HeldReply
from nats_taskflow.flow.policy import Policy

AT_ONCE = 2
"""How many replies a new one may displace: more than one, so that a quota that was lowered is met in time."""


Sender = tuple[str, str]
"""(tenant, topic)."""


class DisplacedReply(msgspec.Struct, frozen=True):
    """A held reply that makes room for another, and the sentence of its dead letter."""

    held: HeldReply
    message: str


class HeldCounts(msgspec.Struct):
    """How many replies are held: in all, by tenant and by its topics as far as it matters here, and of these topics the ones that expire
    first, in that order.

    What is in `first` need not have its payload.
    """

    total: int = 0
    of: dict[str, int] = msgspec.field(default_factory=dict)
    topics: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    first: dict[Sender, list[HeldReply]] = msgspec.field(default_factory=dict)

    def add(self, held: HeldReply) -> None:
        """Note one more, which expires after all that are there."""
        self._count(held, 1)
        self.first.setdefault((held.tenant, held.topic), []).append(held)

    def remove(self, held: HeldReply) -> None:
        """Note one less."""
        self._count(held, -1)
        known = self.first.get((held.tenant, held.topic), [])
        known[:] = [other for other in known if other.key != held.key]

    def _count(self, held: HeldReply, by: int) -> None:
        """Count a reply that comes or goes."""
        self.total += by
        self.of[held.tenant] = self.of.get(held.tenant, 0) + by
        topics = self.topics.setdefault(held.tenant, {})
        topics[held.topic] = topics.get(held.topic, 0) + by


def displace(new: HeldReply, holdings: HeldCounts, policy: Policy) -> tuple[DisplacedReply, ...]:
    """Return what has to go so that the new reply may be held."""
    gone: list[DisplacedReply] = []
    for _ in range(AT_ONCE):
        out = [displaced.held for displaced in gone]
        counts = {tenant: count - sum(held.tenant == tenant for held in out) for tenant, count in holdings.of.items()}
        if counts.get(new.tenant, 0) >= policy.max_held_of_tenant:
            payer, quota, whose = new.tenant, policy.max_held_of_tenant, f"of {new.tenant} " if new.tenant else ""
        elif holdings.total - len(out) >= policy.max_held:
            payer, quota, whose = max(holdings.topics, key=lambda tenant: counts.get(tenant, 0), default=""), policy.max_held, ""
        else:
            break
        held = _first_of(payer, new, holdings, out)
        if held is None:
            break
        gone.append(DisplacedReply(held, f"the quota of {quota} held replies {whose}is used up: this one, the first to expire, made room"))
    return tuple(gone)


def _first_of(tenant: str, new: HeldReply, holdings: HeldCounts, gone: Sequence[HeldReply]) -> HeldReply | None:
    """Return the reply that goes next where the tenant pays: of the topic that would hold most with the new one, its own where in doubt."""
    keys = {held.key for held in gone}
    paying: tuple[tuple[int, bool], HeldReply] | None = None
    for topic, count in holdings.topics.get(tenant, {}).items():
        held = next((held for held in holdings.first.get((tenant, topic), ()) if held.key not in keys), None)
        own = (tenant, topic) == (new.tenant, new.topic)
        rank = count - sum((other.tenant, other.topic) == (tenant, topic) for other in gone) + own, own
        if held is not None and (paying is None or rank > paying[0]):
            paying = rank, held
    return paying[1] if paying is not None else None
