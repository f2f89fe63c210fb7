"""Order what waits for its transaction: fairly between agents, bounded in bytes.

Agents take turns: one that sends much delays nobody but itself. Each agent's own messages stay in their order (SEMANTICS O1), and so do the
replies of a topic, which are one agent's. Between agents there is no order (O3): a deadline that must not pass before an earlier reply
waits for that reply by itself (R9).

Time waits for nobody, and somebody waits for the answer to a request: so what time brings, requests, and messages (with what this process
asks) each have a line. As long as a batch takes all there is, they share it. Where it does not, each line in turn has a transaction of its
own: no flood in one delays what is in another by more than the transaction that runs (RELIABILITY 4, row 53). Housekeeping has its own,
too, after each batch one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, final

import msgspec

from nats_taskflow.engine.submission import Submission
from nats_taskflow.flow.stimuli import DeadlinePassed, FollowUp, Reply
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

    def take(self, batch: list[Submission], most: int, room: int) -> int:
        """Move items to a batch. Returns the room left.

        Stops when the batch has `most` items, when they weigh `room`, or when a suspect is next.
        """
        for _ in range(most - len(batch)):
            if room <= 0 or not self._turns or self._turns[0][1][0].group:
                break
            item = self._next()
            room -= item.size
            batch.append(item)
        return room

    def take_suspects(self, most: int) -> list[Submission]:
        """Return suspects from the heads where one is next, as many as may run together.

        The smallest `group` among them says how many share a transaction.
        """
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


_TIMED = frozenset({DeadlinePassed, FollowUp})
"""What time brings, and what earlier transactions left to do."""


class Queue:
    """Messages, requests and housekeeping on their way to a transaction.

    `max_batch` bounds how many submissions share one.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._requests = SourceTurns()
        self._messages = SourceTurns()
        self._timed = SourceTurns()
        self._lines = self._requests, self._messages, self._timed
        self._turns = deque((self._timed, self._requests, self._messages))  # in a flood: who is first is next
        self._crowded = False
        self._jobs: deque[Job] = deque()
        self._job_is_next = True

    def __len__(self) -> int:
        return self._count + len(self._jobs)

    @property
    def _count(self) -> int:
        return self._timed.count + self._requests.count + self._messages.count

    def put(self, item: Submission | Job) -> None:
        """Append to its line."""
        if type(item) is Job:
            self._jobs.append(item)
        elif item.request:
            self._requests.put(item)
        elif type(item.what) in _TIMED:
            self._timed.put(item)
        else:
            self._messages.put(item)

    def put_back(self, submissions: list[Submission]) -> None:
        """Put back what was taken: it is next in its line, in its order."""
        self._crowded = self._crowded or bool(submissions)
        for item in reversed(submissions):
            self._line_of(item).put_back(item)

    def _line_of(self, item: Submission) -> SourceTurns:
        return self._requests if item.request else self._timed if type(item.what) in _TIMED else self._messages

    def take(self) -> Job | list[Submission]:
        """Return the next job, or the next batch. There must be something."""
        if self._jobs and (self._job_is_next or not self._count):
            self._job_is_next = False
            return self._jobs.popleft()
        self._job_is_next = True
        if suspects := self._messages.take_suspects(self._max_batch):
            return suspects
        batch: list[Submission] = []
        room = MAX_BYTES
        lines = [line for line in (self._turns if self._crowded else self._lines) if line.count]
        for line in lines[:1] if self._crowded else lines:
            before = len(batch)
            room = line.take(batch, self._max_batch, room)
            if len(batch) > before:
                self._turns.remove(line)
                self._turns.append(line)
        self._crowded = self._count > 0
        return batch

    def clear(self) -> Iterable[asyncio.Future[Any]]:
        """Drop everything; return the futures that wait for it."""
        futures = [job.done for job in self._jobs]
        self._jobs.clear()
        return futures + [item.done for line in self._lines for item in line.clear()]


def _lane_of(item: Submission) -> str:
    """Return whose turn a submission takes.

    That is its agent's, its tenant's, the process's own (it has no stream), or that of all senders we do not know.
    """
    what = item.what
    if type(what) is Reply:
        if what.tenant:
            return what.tenant
    elif item.identity is not None:
        return item.identity.scope
    return _OURS if item.seq is None else _NOBODYS
