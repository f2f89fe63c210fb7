"""Order what waits for its transaction: messages and housekeeping as they came, requests beside them, fairly between agents.

The stream's backlog may be long, and somebody waits for the answer to a request: so requests have half of each batch, and no flood of
messages delays them by more than the batch that runs (RELIABILITY 4, row 53). Among requests agents take turns, so that one who asks much
delays nobody but itself; each agent's own stay in their order. What came from a stream, timers and housekeeping keep theirs: a reply that
arrived before a deadline is decided before it (SEMANTICS R9).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from worker.store.base import Work
from worker.submission import Submission


class Job(msgspec.Struct, frozen=True):
    """Housekeeping on its way to a transaction of its own."""

    work: Work[Any]
    done: asyncio.Future[Any]


class Queue:
    """What waits. `max_batch` bounds how much of it shares a transaction."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._line: deque[Submission | Job] = deque()
        self._requests: dict[str, deque[Submission]] = {}
        self._waiting_requests = 0
        self._odd = False

    def __len__(self) -> int:
        return len(self._line) + self._waiting_requests

    def put(self, item: Submission | Job, *, request: bool = False) -> None:
        """Append to the line, or to the requests of its agent."""
        if request and isinstance(item, Submission):
            scope = item.identity.scope if item.identity is not None else ""
            self._requests.setdefault(scope, deque()).append(item)
            self._waiting_requests += 1
        else:
            self._line.append(item)

    def put_back(self, kept: list[Submission]) -> None:
        """Put what was taken from the line back at its head, in its order."""
        self._line.extendleft(reversed(kept))

    def take(self) -> Job | list[Submission]:
        """Return the next job, or the next batch. There must be something."""
        head = self._line[0] if self._line else None
        if isinstance(head, Job):
            self._line.popleft()
            return head
        if head is not None and head.group:
            return self._suspects()
        batch = self._asked(self._share())
        while self._line and len(batch) < self._max_batch:
            head = self._line[0]
            if isinstance(head, Job) or head.group:
                break
            self._line.popleft()
            batch.append(head)
        return batch

    def _suspects(self) -> list[Submission]:
        """Take the suspects at the head of the line, as many as the wariest of them lets share a transaction."""
        batch: list[Submission] = []
        room = self._max_batch
        while self._line and not isinstance(head := self._line[0], Job) and head.group and len(batch) < min(room, head.group):
            room = min(room, head.group)
            self._line.popleft()
            batch.append(head)
        return batch

    def _share(self) -> int:
        """Say how many requests the next batch takes: half while others wait; the odd place goes to each side in turn."""
        if not self._line:
            return self._max_batch
        self._odd = not self._odd
        return self._max_batch // 2 + (self._max_batch % 2 if self._odd else 0)

    def _asked(self, share: int) -> list[Submission]:
        """Take requests, one of each agent in turn; whoever was served goes to the end."""
        batch: list[Submission] = []
        while self._requests and len(batch) < share:
            scope = next(iter(self._requests))
            own = self._requests.pop(scope)
            batch.append(own.popleft())
            if own:
                self._requests[scope] = own
        self._waiting_requests -= len(batch)
        return batch

    def clear(self) -> Iterable[asyncio.Future[Any]]:
        """Forget everything; returns who waits for it."""
        waiting = [item.done for item in self._line] + [item.done for own in self._requests.values() for item in own]
        self._line.clear()
        self._requests.clear()
        self._waiting_requests = 0
        return waiting
