"""Publish rows of the outbox, in order within a lane.

A lane is a flow. A row is sent once the broker has stored the row before it in the lane, or together with it in a batch that the broker
stores in order and as a whole. So a lane has no gap, whatever the broker loses or refuses. Different lanes are in flight side by side.

There are three ways for a row to leave:
1. In a batch, where many wait. What is put meanwhile goes with the next batch; where that is too much for one, agents have turns.
2. By itself, where few wait, after a batch failed, or where the broker may have stored the batch before; and so do the rows of an agent
   that has few: no batch of others' stands before them.
3. Not at all: the broker refuses it for its own sake (it is too large, say). Then its lane is set aside, and nothing of the lane is kept
   in memory, so that the other lanes go on, however many are set aside. The relay puts the rows again when it is time to try.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from structlog.typing import FilteringBoundLogger

from nats_taskflow.bus.port import Bus, OutgoingMessage, Published, PublishFailed
from nats_taskflow.services.outbox_message import OutboxMessage, agent_or_owner, next_batch

_RETRY_FIRST, _RETRY_LAST = 0.1, 1.0
_OWN_FAULT = 3
"""A row that was refused this often, each time after others went through, is refused for its own sake."""
_FEW = 8
"""Fewer than these go one by one: a batch costs the broker more than a message, and each message would wait for all of them."""
_SINGLES_FIRST, _SINGLES_LAST = 1.0, 10.0
"""Seconds without a batch after one that failed, until the broker is asked again."""


class OrderedPublisher:
    """Sends rows until the broker has stored them.

    `on_stored(n, count)` is called for each row, or once for a batch, with the number of its last row.
    """

    def __init__(self, bus: Bus, *, on_stored: Callable[[int, int], None], log: FilteringBoundLogger) -> None:
        self._bus = bus
        self._on_stored = on_stored
        self._log = log
        self._lanes: dict[str, deque[OutboxMessage]] = {}
        self._idle: dict[str, None] = {}  # lanes of which nothing is in flight
        self._idle_few: dict[str, None] = {}  # such lanes, too: those of agents with few rows
        self._pending_of: Counter[str] = Counter()  # how many rows of an agent are not stored yet
        self._is_scheduled = False
        self._is_batch_in_flight = False
        self._rejected: deque[OutboxMessage] = deque()  # heads that the broker did not take, to be tried again
        self._retry_in = _RETRY_FIRST
        self._is_retry_scheduled = False
        self._blocked = False  # the broker took nothing since the last rejection
        self._warned = False  # … and that was logged
        self._singles_for = _SINGLES_FIRST
        self._singles_until = 0.0
        self._singles_up_to = 0  # rows up to this number go one by one
        self._successes = 0
        self._refusals: dict[int, tuple[int, int]] = {}  # row number → how often it was refused, and `_successes` at the last time
        self.set_aside: dict[str, int] = {}
        """Lanes that are set aside: from which row on nothing of them is in here."""
        self.to_read_again: dict[str, None] = {}
        """Lanes that are set aside and to be put again now: their rows in here are stored, or it is time to try again."""
        self.refused: set[str] = set()
        """Lanes whose head was refused for its own sake, and has not gone through since."""
        self.pending: dict[int, OutgoingMessage] = {}
        """Messages that the broker has not stored yet, by row number."""
        self.pending_bytes = 0
        self.trouble = ""
        """Why the broker rejects something; empty while it takes everything."""

    def put(self, row: OutboxMessage, message: OutgoingMessage) -> None:
        """Queue a row (numbers must ascend), unless its lane is set aside."""
        if self.set_aside.get(row.lane, row.n + 1) <= row.n:
            return
        self.pending[row.n] = message
        self.pending_bytes += len(message.body)
        self._pending_of[agent_or_owner(row.owner)] += 1
        queue = self._lanes.setdefault(row.lane, deque())
        queue.append(row)
        if len(queue) == 1:
            self._schedule(row.lane)

    def is_empty(self, lane: str) -> bool:
        """Return whether nothing of a lane waits to be sent."""
        return lane not in self._lanes

    def take_back(self, lane: str, rows: Sequence[OutboxMessage], following: int | None) -> None:
        """Queue a set-aside lane's next rows. It stays aside from `following` on, if any."""
        del self.set_aside[lane]
        for row in rows:
            if row.message is not None:
                self.put(row, row.message)
        if following is not None:
            self.set_aside[lane] = following
        elif self.is_empty(lane):
            self.refused.discard(lane)

    def _schedule(self, lane: str) -> None:
        """Dispatch in the next loop iteration, together with what is put until then."""
        self._idle.pop(lane, None)  # it may have been there as one of an agent that has many
        (self._idle_few if self._has_few(lane) else self._idle)[lane] = None
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _has_few(self, lane: str) -> bool:
        return self._pending_of[agent_or_owner(self._lanes[lane][0].owner)] < _FEW

    def _dispatch(self) -> None:
        """Send what waits. Beside a batch in flight, only agents with few rows send."""
        self._is_scheduled = False
        heads = self._heads_of_few()
        if not self._is_batch_in_flight:
            batch = self._batch()
            if batch:
                self._send_batch(batch)
            heads += [self._lanes[lane][0] for lane in self._idle if not batch or self._goes_alone(lane)]
        for row in heads:
            self._idle.pop(row.lane, None)
            (self._rejected.append if self._blocked else self._send)(row)

    def _heads_of_few(self) -> list[OutboxMessage]:
        """Return the rows to send beside any batch: none if too many agents have few rows."""
        lanes, self._idle_few = self._idle_few, {}
        few = [lane for lane in lanes if self._has_few(lane)]
        few = few if len(few) < _FEW else []
        self._idle |= dict.fromkeys(lane for lane in lanes if lane not in few)
        return [self._lanes[lane][0] for lane in few]

    def _batch(self) -> list[OutboxMessage]:
        """Return the next batch in order: empty while few rows wait or batches fail."""
        if self._blocked or asyncio.get_running_loop().time() < self._singles_until:
            return []
        waiting = [row for lane in self._idle if not self._goes_alone(lane) for row in self._lanes[lane]]
        if len(waiting) < _FEW:
            return []
        return next_batch(waiting, lambda row: len(self.pending[row.n].body))

    def _goes_alone(self, lane: str) -> bool:
        return self._lanes[lane][0].n <= self._singles_up_to

    def _send_batch(self, rows: Sequence[OutboxMessage]) -> None:
        """Publish a batch."""
        self._is_batch_in_flight = True
        for row in rows:
            self._idle.pop(row.lane, None)
        answer = self._publish(lambda: self._bus.publish_all([self.pending[row.n] for row in rows]))
        answer.add_done_callback(partial(self._on_batch_answer, rows))

    def _on_batch_answer(self, rows: Sequence[OutboxMessage], answer: asyncio.Future[Published]) -> None:
        """Go on once a batch is stored. If it failed in any way, send its rows singly.

        That is safe. If the batch is stored after all, the broker knows each row by its id. If it is stored later, then as a whole or not
        at all, and not once one of its rows is.
        """
        self._is_batch_in_flight = False
        if answer.cancelled() or answer.exception() is not None:
            self._fall_back_to_singles(rows, answer)
            self._idle |= dict.fromkeys(row.lane for row in rows)
        else:
            self._singles_for = _SINGLES_FIRST
            for row in rows:
                self._done(row)
            self._note_success(rows[-1], len(rows))
        self._dispatch()

    def _fall_back_to_singles(self, rows: Sequence[OutboxMessage], answer: asyncio.Future[Published]) -> None:
        """Send the rows of a failed batch one by one, and for a while all others too.

        Where the broker has some of the rows already, they were stored before a crash, and they come first. Then only the first half goes
        one by one: the next batch shows whether the other half must.
        """
        failure = None if answer.cancelled() else answer.exception()
        if isinstance(failure, PublishFailed) and failure.duplicate:
            self._singles_up_to = rows[(len(rows) - 1) // 2].n
            self._log.info("one_by_one", up_to=self._singles_up_to, why=_why(answer))
            return
        log = self._log.info if self._singles_for == _SINGLES_FIRST else self._log.debug  # once until a batch is taken
        log("one_by_one", count=len(rows), seconds=self._singles_for, why=_why(answer))
        self._singles_until = asyncio.get_running_loop().time() + self._singles_for
        self._singles_for = min(self._singles_for * 2, _SINGLES_LAST)

    def _done(self, row: OutboxMessage) -> None:
        """Take the stored head out of its lane. The next row may be sent."""
        queue = self._lanes[row.lane]
        queue.popleft()
        self._refusals.pop(row.n, None)
        self.refused.discard(row.lane)
        self._forget(row)
        if queue:
            self._schedule(row.lane)
        else:
            del self._lanes[row.lane]
            self._idle.pop(row.lane, None)
            self._idle_few.pop(row.lane, None)
            if row.lane in self.set_aside:
                self.to_read_again[row.lane] = None

    def _forget(self, row: OutboxMessage) -> None:
        """Drop a row's message, and no longer count it as its agent's."""
        self.pending_bytes -= len(self.pending.pop(row.n).body)
        agent = agent_or_owner(row.owner)
        self._pending_of[agent] -= 1
        if not self._pending_of[agent]:
            del self._pending_of[agent]

    def _publish(self, publish: Callable[[], asyncio.Future[Published]]) -> asyncio.Future[Published]:
        """Publish. An exception becomes the answer: in a callback it would stop the lane."""
        try:
            return publish()
        except Exception as defect:  # noqa: BLE001  it is the answer, which is logged and tried again
            answer: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
            answer.set_exception(defect)
            return answer

    def _send(self, row: OutboxMessage) -> None:
        answer = self._publish(lambda: self._bus.publish(self.pending[row.n]))
        answer.add_done_callback(partial(self._on_answer, row))

    def _on_answer(self, row: OutboxMessage, answer: asyncio.Future[Published]) -> None:
        """Go on with the lane if its head is stored; otherwise set it aside or try again."""
        if answer.cancelled() or answer.exception() is not None:
            if self._is_own_fault(row, answer):
                self._set_aside(row, _why(answer))
            else:
                self._keep_for_retry(row, _why(answer))
            return
        self._done(row)
        self._note_success(row, 1)

    def _is_own_fault(self, row: OutboxMessage, answer: asyncio.Future[Published]) -> bool:
        """Return whether the row is to blame, not the broker (full stream, no permission)."""
        failure = None if answer.cancelled() else answer.exception()
        if not isinstance(failure, PublishFailed) or not failure.refused:
            return False
        times, successes = self._refusals.get(row.n, (0, -1))
        if successes < self._successes:
            self._refusals[row.n] = times + 1, self._successes
        return failure.unsendable or self._refusals[row.n][0] >= _OWN_FAULT

    def _set_aside(self, row: OutboxMessage, why: str) -> None:
        """Set a lane aside: drop its rows, from the head on."""
        if row.lane not in self.refused:
            self._log.error("flow_not_published", lane=row.lane, n=row.n, msg_id=self.pending[row.n].msg_id, why=why)
        for dropped in self._lanes.pop(row.lane):
            self._forget(dropped)
            self._refusals.pop(dropped.n, None)
        self._idle.pop(row.lane, None)
        self._idle_few.pop(row.lane, None)
        self.refused.add(row.lane)
        self.set_aside[row.lane] = row.n  # before the place where the lane was set aside already, if it was
        if self._rejected:
            self._schedule_retry()  # this row may have been the one that was sent to find out whether the broker takes anything
        else:
            self._blocked, self.trouble = False, ""
        self._on_stored(0, 0)

    def _note_success(self, row: OutboxMessage, count: int) -> None:
        """Note that the broker takes what it is given."""
        self._successes += 1
        self._retry_in = _RETRY_FIRST
        self._blocked = self._warned = False
        if self._rejected:
            self._schedule_retry()
        else:
            self.trouble = ""
        self._on_stored(row.n, count)

    def _keep_for_retry(self, row: OutboxMessage, why: str) -> None:
        """Keep a rejected row to publish it again: ever later while nothing goes through."""
        self._rejected.append(row)
        self._blocked = True
        self.trouble = why
        if self._bus.connected and not self._warned:  # log once, until something goes through
            message = self.pending[row.n]
            self._log.warning("publish_failed", subject=message.subject, msg_id=message.msg_id, why=why)
        self._warned = self._bus.connected
        self._schedule_retry()

    def _schedule_retry(self) -> None:
        """Schedule the next try to publish what was rejected."""
        if self._is_retry_scheduled:
            return
        self._is_retry_scheduled = True
        asyncio.get_running_loop().call_later(self._retry_in, self._retry)
        self._retry_in = min(self._retry_in * 2, _RETRY_LAST)

    def _retry(self) -> None:
        # While everything is rejected, one row is tried at a time, a different one each time and never a batch: a row may be to blame.
        self._is_retry_scheduled = False
        for _ in range(min(1, len(self._rejected)) if self._blocked else len(self._rejected)):
            self._send(self._rejected.popleft())


def _why(answer: asyncio.Future[Published]) -> str:
    return "cancelled" if answer.cancelled() else str(answer.exception())
