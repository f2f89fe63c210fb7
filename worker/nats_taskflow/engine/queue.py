"""Order what waits for its transaction: fairly between agents, bounded in bytes, with requests and housekeeping beside messages.

Agents take turns: one that sends much delays nobody but itself. Each agent's own messages stay in their order (SEMANTICS O1), and so do the
replies of a topic, which are one agent's. Between agents there is no order (O3): a deadline that must not pass before an earlier reply
waits for that reply by itself (R9).

Somebody waits for the answer to a request. So requests have half of each batch, and no flood of messages delays them by more than the batch
that runs (RELIABILITY 4, row 53). After each batch one piece of housekeeping has a transaction of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, final

import msgspec

from nats_taskflow.engine.submission import Submission
from nats_taskflow.flow.stimuli import Reply
from nats_taskflow.store.port import Work

MAX_BYTES = 1024 * 1024
"""The bytes of the messages that share a transaction; the last one of each side may exceed them."""

_OURS, _NOBODYS = "ours", "nobody's"


@final
class Job(msgspec.Struct, frozen=True):
    """Housekeeping on its way to a transaction of its own."""

    work: Work[Any]
    done: asyncio.Future[Any]


class SourceTurns:
    """Submissions by lane. The lanes take turns; each lane keeps its order."""

    def __init__(self) -> None:
        self._turns: deque[tuple[str, deque[Submission]]] = deque()  # the first lane is next
        self._lanes: dict[str, deque[Submission]] = {}
        self.count = 0

    def put(self, item: Submission) -> None:
        """Append to the end of its lane."""
        lane = _lane_of(item)
        if lane in self._lanes:
            self._lanes[lane].append(item)
        else:
            self._lanes[lane] = own = deque((item,))
            self._turns.append((lane, own))
        self.count += 1

    def put_back(self, item: Submission) -> None:
        """Put back what was taken, at the head: it is next."""
        lane = _lane_of(item)
        own = self._lanes.setdefault(lane, deque())
        if own:
            self._turns.remove((lane, own))
        own.appendleft(item)
        self._turns.appendleft((lane, own))
        self.count += 1

    def take(self, batch: list[Submission], most: int, room: int) -> None:
        """Move items to a batch until it has `most`, they weigh `room`, or a suspect is next."""
        for _ in range(most - len(batch)):
            if room <= 0 or not self._turns or self._turns[0][1][0].group:
                return
            item = self._next()
            room -= item.size
            batch.append(item)

    def take_suspects(self, most: int) -> list[Submission]:
        """Return suspects from the heads where one is next: as many as the smallest `group` among them lets share a transaction."""
        batch: list[Submission] = []
        skipped = 0
        while self._turns and skipped < len(self._turns) and len(batch) < most:
            head = self._turns[0][1][0]
            most = min(most, head.group or most)
            if not head.group and not batch:
                return batch
            if head.group and len(batch) < most:
                batch.append(self._next())
                skipped = 0
            else:
                self._turns.rotate(-1)
                skipped += 1
        return batch

    def _next(self) -> Submission:
        """Remove and return the head of the first lane; the next lane has its turn."""
        lane, own = self._turns[0]
        item = own.popleft()
        self.count -= 1
        if own:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self._lanes[lane]
        return item

    def clear(self) -> list[Submission]:
        """Drop everything; return what there was."""
        items = [item for _, own in self._turns for item in own]
        self._turns.clear()
        self._lanes.clear()
        self.count = 0
        return items


class Queue:
    """Messages, requests and housekeeping on their way to a transaction. `max_batch` bounds how many submissions share one."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._messages = SourceTurns()
        self._requests = SourceTurns()
        self._jobs: deque[Job] = deque()
        self._job_is_next = True
        self._odd_to_requests = False

    def __len__(self) -> int:
        return self._messages.count + self._requests.count + len(self._jobs)

    def put(self, item: Submission | Job, *, request: bool = False) -> None:
        """Append to the messages, or to the requests, or to the housekeeping."""
        if type(item) is Job:
            self._jobs.append(item)
        else:
            (self._requests if request else self._messages).put(item)

    def put_back(self, submissions: list[Submission]) -> None:
        """Put back what was taken: it is next, in its order."""
        for item in reversed(submissions):
            self._messages.put_back(item)

    def take(self) -> Job | list[Submission]:
        """Return the next job, or the next batch. There must be something."""
        if self._jobs and (self._job_is_next or not (self._messages.count or self._requests.count)):
            self._job_is_next = False
            return self._jobs.popleft()
        self._job_is_next = True
        if suspects := self._messages.take_suspects(self._max_batch):
            return suspects
        batch: list[Submission] = []
        share, room = self._share()
        self._requests.take(batch, share, room)
        self._messages.take(batch, self._max_batch, room)
        return batch

    def _share(self) -> tuple[int, int]:
        """Return how many requests the next batch takes, and their bytes: half of it while messages wait too; the odd place alternates."""
        if not (self._messages.count and self._requests.count):
            return self._max_batch, MAX_BYTES
        self._odd_to_requests = not self._odd_to_requests
        return self._max_batch // 2 + (self._max_batch % 2 if self._odd_to_requests else 0), MAX_BYTES // 2

    def clear(self) -> Iterable[asyncio.Future[Any]]:
        """Drop everything; return the futures that wait for it."""
        futures = [job.done for job in self._jobs]
        self._jobs.clear()
        return futures + [item.done for turns in (self._messages, self._requests) for item in turns.clear()]


def _lane_of(item: Submission) -> str:
    """Return whose turn a submission takes: its agent's, its tenant's, the process's own (no stream), or nobody's we know."""
    what = item.what
    if type(what) is Reply:
        if what.tenant:
            return what.tenant
    elif item.identity is not None:
        return item.identity.scope
    return _OURS if item.seq is None else _NOBODYS
