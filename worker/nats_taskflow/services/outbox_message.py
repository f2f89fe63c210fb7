"""Rows on their way to the broker, and which of those that wait go out together."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter

import msgspec

from nats_taskflow.bus.port import MOST_TOGETHER, OutgoingMessage
from nats_taskflow.flow.ids import agent_of

_BATCH_BYTES = 1024 * 1024
"""A batch takes no more once it weighs this much."""
_number = attrgetter("n")


class OutboxMessage(msgspec.Struct, frozen=True):
    """A row on its way out: its number in the outlet, its lane, and the message; None where the row cannot be read.

    `owner`: of the flow, or who sent what is dead. What is about one agent delays nobody else's.
    """

    n: int
    lane: str
    message: OutgoingMessage | None
    owner: str = ""


@lru_cache(maxsize=4096)
def whose(owner: str) -> str:
    """Return the agent of an owner, or an owner that is no agent: they take turns."""
    return agent_of(owner) or owner


def together(waiting: list[OutboxMessage], weigh: Callable[[OutboxMessage], int]) -> list[OutboxMessage]:
    """Choose what goes out as one batch, in the order of the numbers: all, or where that is too much, what agents have by turns."""
    waiting.sort(key=_number)
    taken = [*_fitting(waiting, weigh)]
    if len(taken) < len(waiting):
        turns: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
        waiting.sort(key=lambda letter: next(turns[whose(letter.owner)]))
        taken = sorted(_fitting(waiting, weigh), key=_number)
    return taken


def _fitting(waiting: Sequence[OutboxMessage], weigh: Callable[[OutboxMessage], int]) -> Iterator[OutboxMessage]:
    """Give the first letters, as many as fit into a batch."""
    size = 0
    for letter in waiting[:MOST_TOGETHER]:
        yield letter
        size += weigh(letter)
        if size >= _BATCH_BYTES:
            return
