"""A row on its way to the broker, and which of the rows that wait go out together."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter

import msgspec

from nats_taskflow.bus.port import BATCH_MAX, OutgoingMessage
from nats_taskflow.flow.ids import agent_of

_BATCH_BYTES = 1024 * 1024
"""A batch takes no more rows once it weighs this much."""
_number = attrgetter("n")


class OutboxMessage(msgspec.Struct, frozen=True):
    """A row of an outlet: its number, its lane, and its message.

    The message is None where the row cannot be read. `owner` is the flow's owner, or the sender of a dead letter: one agent's rows delay
    nobody else's.
    """

    n: int
    lane: str
    message: OutgoingMessage | None
    owner: str = ""


@lru_cache(maxsize=4096)
def agent_or_owner(owner: str) -> str:
    """Return the agent of an owner, or an owner that is no agent: they take turns."""
    return agent_of(owner) or owner


def next_batch(waiting: list[OutboxMessage], weigh: Callable[[OutboxMessage], int]) -> list[OutboxMessage]:
    """Return the rows of the next batch, in order.

    Where the waiting rows are too many for one batch, agents take turns: each one's first row, each one's second, and so on.
    """
    waiting.sort(key=_number)
    batch = [*_fitting(waiting, weigh)]
    if len(batch) < len(waiting):
        turns: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
        waiting.sort(key=lambda row: next(turns[agent_or_owner(row.owner)]))
        batch = sorted(_fitting(waiting, weigh), key=_number)
    return batch


def _fitting(waiting: Sequence[OutboxMessage], weigh: Callable[[OutboxMessage], int]) -> Iterator[OutboxMessage]:
    """Yield the first rows, as many as fit into a batch."""
    size = 0
    for row in waiting[:BATCH_MAX]:
        yield row
        size += weigh(row)
        if size >= _BATCH_BYTES:
            return
