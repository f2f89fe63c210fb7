"""Bound how many replies are held: a quota for each tenant and one for all (RELIABILITY 4, row 52).

A tenant is whoever a topic belongs to: its one owner, else its reply binding. Over its quota a tenant pays for its new reply with the one
of its own that would expire first; over the quota of all, the tenant that holds most pays. So a flood displaces its own replies, and
nobody else's, and each displaced reply has an outcome (`expired`) and a dead letter like any other that nobody came for.
"""

from __future__ import annotations

import msgspec

from worker.flow.commands import Policy
from worker.flow.model import HeldReply

AT_ONCE = 2
"""How many replies a new one may displace: more than one, so that a quota that was lowered is met in time."""


class Displaced(msgspec.Struct, frozen=True):
    """A held reply that makes room for another, and the sentence of its dead letter."""

    held: HeldReply
    message: str


class Holdings(msgspec.Struct):
    """How many replies are held: in all, by tenant as far as it matters here, and of these the ones that expire first, in that order.

    What is in `first` need not have its payload.
    """

    total: int = 0
    of: dict[str, int] = msgspec.field(default_factory=dict)
    first: dict[str, list[HeldReply]] = msgspec.field(default_factory=dict)

    def add(self, held: HeldReply) -> None:
        """Note one more, which expires after all that are there."""
        self.total += 1
        self.of[held.tenant] = self.of.get(held.tenant, 0) + 1
        self.first.setdefault(held.tenant, []).append(held)

    def remove(self, held: HeldReply) -> None:
        """Note one less."""
        self.total -= 1
        self.of[held.tenant] = self.of.get(held.tenant, 0) - 1
        known = self.first.get(held.tenant, [])
        known[:] = [other for other in known if other.key != held.key]


def displaced_by(new: HeldReply, holdings: Holdings, policy: Policy) -> tuple[Displaced, ...]:
    """Return what has to go so that the new reply may be held."""
    gone: list[Displaced] = []
    for _ in range(AT_ONCE):
        keys = {displaced.held.key for displaced in gone}
        counts = {tenant: count - sum(d.held.tenant == tenant for d in gone) for tenant, count in holdings.of.items()}
        if counts.get(new.tenant, 0) >= policy.max_held_of_tenant:
            payer, quota = new.tenant, policy.max_held_of_tenant
        elif holdings.total - len(gone) >= policy.max_held:
            payer, quota = max(holdings.first, key=lambda tenant: counts.get(tenant, 0), default=""), policy.max_held
        else:
            break
        held = next((held for held in holdings.first.get(payer, ()) if held.key not in keys), None)
        if held is None:
            break
        whose = f"of {payer} " if quota == policy.max_held_of_tenant and payer else ""
        gone.append(Displaced(held, f"the quota of {quota} held replies {whose}is used up: this one, the first to expire, made room"))
    return tuple(gone)
