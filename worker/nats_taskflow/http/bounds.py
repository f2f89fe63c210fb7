"""Say what connections and requests, of one peer and of all, may take of a server, and who has to go where there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Protocol, TypeVar

import msgspec

_PEERS_REMEMBERED = 1000


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What connections may take. Where there are too many, those that ask for nothing go first, the oldest first."""

    connections: int = 256
    """All together."""
    of_peer: int = 200
    """Of one peer (`peer_of`): the rest is for others."""
    request_seconds: float = 10.0
    """From the first to the last byte of a request, or from the connection's begin."""
    answer_seconds: float = 10.0
    """For the reading of an answer that is larger than what is buffered on its way."""
    idle_seconds: int = 5
    """Between two requests of a connection."""
    requests_a_second: float = 100.0
    """Of one peer; who asks more often waits, after as many at once."""
    all_a_second: float = 400.0
    """Of all peers together: as many as one gets that asks on all its connections, and waits each time."""
    longest_wait: float = 0.5
    """Seconds: a probe from the address of somebody who asks for ever gets its answer all the same."""


BOUNDS = Bounds()


@lru_cache(_PEERS_REMEMBERED)
def peer_of(address: str) -> str:
    """Return whom an address counts with: all of loopback is one machine, and so is a /64 of IPv6, for one machine has that many."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback:
        return "loopback"
    return str(IPv6Network((int(ip), 64), strict=False)) if isinstance(ip, IPv6Address) else str(ip)


class Peer(Protocol):
    """A connection, as far as it matters for who may stay."""

    peer: str
    since: float

    @property
    def asks(self) -> bool:
        """Whether a whole request is there that has no whole answer yet."""


P = TypeVar("P", bound=Peer)


def one_too_many(connections: Collection[P], newest: P, bounds: Bounds) -> P | None:
    """Return who has to go where there are too many: of the peer with too many, or with most. None where there is room."""
    if sum(one.peer == newest.peer for one in connections) > bounds.of_peer:
        peer = newest.peer
    elif len(connections) > bounds.connections:
        ((peer, _),) = Counter(one.peer for one in connections).most_common(1)
    else:
        return None
    return min((one for one in connections if one.peer == peer), key=lambda one: (one.asks, one.since))


class RequestPace:
    """Says how long each peer has to wait for its turn, so that none takes the loop for itself (GCRA: as many at once as in a second)."""

    def __init__(self, a_second: float, longest: float) -> None:
        self._interval = 1 / a_second
        self._burst = max(1 - self._interval, 0.0)
        self._longest = longest
        self._due: dict[str, float] = {}

    def wait(self, peer: str, now: float) -> float:
        """Count a request of this peer, and return the seconds after which it is answered."""
        due = max(self._due.get(peer, now), now)
        if len(self._due) > _PEERS_REMEMBERED:
            self._due = {one: when for one, when in self._due.items() if when > now}
        wait = min(max(due - now - self._burst, 0.0), self._longest)
        self._due[peer] = now + min(due - now, self._burst + self._longest) + self._interval
        return wait
