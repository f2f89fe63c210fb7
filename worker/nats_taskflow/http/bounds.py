"""Bound what connections and requests may take, of one peer and of all.

It also chooses the connection to close when there are too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Protocol, TypeVar

import msgspec

_PEERS_REMEMBERED = 1000


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What connections may take.

    When there are too many, idle ones go first, the oldest first.
    """

    connections: int = 256
    """All together."""
    of_peer: int = 200
    """Of one peer (`peer_of`): the others are for other peers."""
    request_seconds: float = 10.0
    """For a whole request, from its first byte, or from the beginning of the connection."""
    answer_seconds: float = 10.0
    """For a client to read an answer that is larger than the buffers on its way."""
    idle_seconds: int = 5
    """Between two requests of a connection."""
    requests_a_second: float = 100.0
    """Of one peer, after a burst of as many at once; one that asks more often waits."""
    all_a_second: float = 400.0
    """Of all peers together: as many as one peer gets on all its connections when it waits each time."""
    longest_wait: float = 0.5
    """Seconds: a probe from the address of a client that never stops asking is still answered."""


BOUNDS = Bounds()


@lru_cache(_PEERS_REMEMBERED)
def peer_of(address: str) -> str:
    """Return the peer that an address belongs to.

    Loopback is one peer, and so is a /64 of IPv6, which one machine has for itself.
    """
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
    """What decides whether a connection may stay."""

    peer: str
    since: float

    @property
    def asks(self) -> bool:
        """Whether a request came whole and is not answered yet."""


P = TypeVar("P", bound=Peer)


def one_too_many(connections: Collection[P], newest: P, bounds: Bounds) -> P | None:
    """Return the connection that has to go.

    Of a peer with too many, else of the peer with most. None while there is room.
    """
    if sum(connection.peer == newest.peer for connection in connections) > bounds.of_peer:
        peer = newest.peer
    elif len(connections) > bounds.connections:
        ((peer, _),) = Counter(connection.peer for connection in connections).most_common(1)
    else:
        return None
    return min((each for each in connections if each.peer == peer), key=lambda connection: (connection.asks, connection.since))


class RequestPace:
    """The rate limit of each peer (GCRA).

    None may take the loop for itself. The burst is the requests of one second.
    """

    def __init__(self, a_second: float, longest: float) -> None:
        self._interval = 1 / a_second
        self._burst = max(1 - self._interval, 0.0)
        self._longest = longest
        self._due: dict[str, float] = {}

    def wait(self, peer: str, now: float) -> float:
        """Count a request of this peer, and return the seconds after which it is answered."""
        due = max(self._due.get(peer, now), now)
        if len(self._due) > _PEERS_REMEMBERED:
            self._due = {other: at for other, at in self._due.items() if at > now}
        wait = min(max(due - now - self._burst, 0.0), self._longest)
        self._due[peer] = now + min(due - now, self._burst + self._longest) + self._interval
        return wait
