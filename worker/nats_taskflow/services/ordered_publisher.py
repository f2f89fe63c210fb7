"""Send letters: in order within a lane, several together where many wait.

Within a lane (a flow) nothing is sent before the broker has stored what comes before it, or takes both together, in order, all or none:
whatever it loses or refuses, the lane has no gap. Across lanes letters are in flight side by side. What queues while a batch is under way
goes with the next, in turns between those it comes from where it is too much for one; where few wait, a batch was not taken just now, or
the broker may have it already, each letter goes by itself. So does what an agent has few of: no batch of others' stands before it.

A letter that is refused for its own sake (too large for the broker, say) has its lane set aside: nothing of it is kept in memory, so that
however many there are, the other lanes go on. Whoever put the letters puts them again when it is time to try.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from structlog.typing import FilteringBoundLogger

from nats_taskflow.bus.port import Bus, OutgoingMessage, Published, PublishFailed
from nats_taskflow.services.outbox_message import OutboxMessage, together, whose

_RETRY_FIRST, _RETRY_LAST = 0.1, 1.0
_OWN_FAULT = 3
"""So often refused, each time after others went through, a letter is refused for its own sake."""
_FEW = 8
"""Fewer than these go one by one: a batch costs the broker more than a message, and each message would wait for all of them."""
_APART_FIRST, _APART_LAST = 1.0, 10.0
"""Seconds without a batch after one that failed, until the broker is asked again."""


class OrderedPublisher:
    """Letters put here are sent until the broker has stored them; `stored(n, count)` is told of each, or of a batch by its last."""

    def __init__(self, bus: Bus, *, stored: Callable[[int, int], None], log: FilteringBoundLogger) -> None:
        self._bus = bus
        self._stored = stored
        self._log = log
        self._lanes: dict[str, deque[OutboxMessage]] = {}
        self._idle: dict[str, None] = {}  # lanes of which nothing is in flight
        self._few: dict[str, None] = {}  # such lanes, too: those of agents with few letters
        self._open_of: Counter[str] = Counter()  # how many letters of an agent are not stored yet
        self._due = False
        self._together = False
        self._held: deque[OutboxMessage] = deque()  # heads that the broker did not take
        self._retry_in = _RETRY_FIRST
        self._retrying = False
        self._stuck = False
        self._told = False
        self._apart_for = _APART_FIRST
        self._apart_until = 0.0
        self._apart_up_to = 0  # letters up to this number go one by one
        self._through = 0
        self._refused: dict[int, tuple[int, int]] = {}  # number → how often it was refused, and `_through` then
        self.aside: dict[str, int] = {}
        """Lanes that are set aside: from which number on nothing of them is in here."""
        self.behind: dict[str, None] = {}
        """Lanes that are set aside and to be put again now: what was put of them is stored, or it is time to try."""
        self.refused: set[str] = set()
        """Lanes whose head was refused for its own sake, and has not gone through since."""
        self.open: dict[int, OutgoingMessage] = {}
        """What is not stored yet, by the letters' numbers."""
        self.open_bytes = 0
        self.trouble = ""
        """Why the broker does not take something; empty while it takes everything."""

    def put(self, letter: OutboxMessage, message: OutgoingMessage) -> None:
        """Send a letter, whose `message` this is, when it is its turn. Numbers ascend. A lane that is set aside takes none."""
        if self.aside.get(letter.lane, letter.n + 1) <= letter.n:
            return
        self.open[letter.n] = message
        self.open_bytes += len(message.body)
        self._open_of[whose(letter.owner)] += 1
        queue = self._lanes.setdefault(letter.lane, deque())
        queue.append(letter)
        if len(queue) == 1:
            self._rest(letter.lane)

    def is_empty(self, lane: str) -> bool:
        """Tell whether nothing of a lane waits to be sent."""
        return lane not in self._lanes

    def take_back(self, lane: str, letters: Sequence[OutboxMessage], following: int | None) -> None:
        """Send the next letters of a lane that was set aside; what comes from `following` on is left out still (None: nothing is)."""
        del self.aside[lane]
        for letter in letters:
            if letter.message is not None:
                self.put(letter, letter.message)
        if following is not None:
            self.aside[lane] = following
        elif self.is_empty(lane):
            self.refused.discard(lane)

    def _rest(self, lane: str) -> None:
        """Send from a lane in the next turn of the loop, with all that is put until then."""
        (self._few if self._has_few(lane) else self._idle)[lane] = None
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _has_few(self, lane: str) -> bool:
        """Tell whether the agent of a lane has few letters."""
        return self._open_of[whose(self._lanes[lane][0].owner)] < _FEW

    def _dispatch(self) -> None:
        """Send what waits, unless a batch is under way: then it goes with the next."""
        self._due = False
        heads = self._of_few()
        if not self._together:
            batch = self._batch()
            if batch:
                self._send_together(batch)
            heads += [self._lanes[lane][0] for lane in self._idle if not batch or self._is_apart(lane)]
        for letter in heads:
            self._idle.pop(letter.lane, None)
            (self._held.append if self._stuck else self._send)(letter)

    def _of_few(self) -> list[OutboxMessage]:
        """Return what agents with few letters send by itself, beside any batch: nothing where these agents are many."""
        lanes, self._few = self._few, {}
        few = [lane for lane in lanes if self._has_few(lane)]
        few = few if len(few) < _FEW else []
        self._idle |= dict.fromkeys(lane for lane in lanes if lane not in few)
        return [self._lanes[lane][0] for lane in few]

    def _batch(self) -> list[OutboxMessage]:
        """Return what goes out together, in the order of the numbers: nothing where few letters wait, or batches are not taken."""
        if self._stuck or asyncio.get_running_loop().time() < self._apart_until:
            return []
        waiting = [letter for lane in self._idle if not self._is_apart(lane) for letter in self._lanes[lane]]
        if len(waiting) < _FEW:
            return []
        return together(waiting, lambda letter: len(self.open[letter.n].body))

    def _is_apart(self, lane: str) -> bool:
        """Tell whether what is next in a lane goes by itself."""
        return self._lanes[lane][0].n <= self._apart_up_to

    def _send_together(self, letters: Sequence[OutboxMessage]) -> None:
        """Publish a batch."""
        self._together = True
        for letter in letters:
            self._idle.pop(letter.lane, None)
        answer = self._asked(lambda: self._bus.publish_all([self.open[letter.n] for letter in letters]))
        answer.add_done_callback(partial(self._answered_together, letters))

    def _answered_together(self, letters: Sequence[OutboxMessage], answer: asyncio.Future[Published]) -> None:
        """Go on when the broker has stored a batch; otherwise send letters one by one.

        Whatever the reason: the batch may be stored, then each letter is known by its id; or be stored later, then as a whole or not at
        all, and not once one of its letters is.
        """
        self._together = False
        if answer.cancelled() or answer.exception() is not None:
            self._part(letters, answer)
            self._idle |= dict.fromkeys(letter.lane for letter in letters)
        else:
            self._apart_for = _APART_FIRST
            for letter in letters:
                self._done(letter)
            self._went_through(letters[-1], len(letters))
        self._dispatch()

    def _part(self, letters: Sequence[OutboxMessage], answer: asyncio.Future[Published]) -> None:
        """Have the letters of a batch that was not taken go one by one, and for a while all others too.

        Where the broker has some of them, they were stored before a crash, and come first: the first half goes, and only that. The next
        batch tells about the other half.
        """
        failure = None if answer.cancelled() else answer.exception()
        if isinstance(failure, PublishFailed) and failure.duplicate:
            self._apart_up_to = letters[(len(letters) - 1) // 2].n
            self._log.info("one_by_one", up_to=self._apart_up_to, why=_why(answer))
            return
        log = self._log.info if self._apart_for == _APART_FIRST else self._log.debug  # once until a batch is taken
        log("one_by_one", count=len(letters), seconds=self._apart_for, why=_why(answer))
        self._apart_until = asyncio.get_running_loop().time() + self._apart_for
        self._apart_for = min(self._apart_for * 2, _APART_LAST)

    def _done(self, letter: OutboxMessage) -> None:
        """Take the head of a lane out; what comes after it may be sent."""
        queue = self._lanes[letter.lane]
        queue.popleft()
        self._refused.pop(letter.n, None)
        self.refused.discard(letter.lane)
        self._forget(letter)
        if queue:
            self._rest(letter.lane)
        else:
            del self._lanes[letter.lane]
            self._idle.pop(letter.lane, None)
            self._few.pop(letter.lane, None)
            if letter.lane in self.aside:
                self.behind[letter.lane] = None

    def _forget(self, letter: OutboxMessage) -> None:
        """Count a letter no more."""
        self.open_bytes -= len(self.open.pop(letter.n).body)
        agent = whose(letter.owner)
        self._open_of[agent] -= 1
        if not self._open_of[agent]:
            del self._open_of[agent]

    def _asked(self, publish: Callable[[], asyncio.Future[Published]]) -> asyncio.Future[Published]:
        """Publish. What it raises is reported, and tried again: this runs in callbacks, where it would end the lane for ever."""
        try:
            return publish()
        except Exception as defect:  # noqa: BLE001  see above
            answer: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
            answer.set_exception(defect)
            return answer

    def _send(self, letter: OutboxMessage) -> None:
        """Publish the head of a lane."""
        answer = self._asked(lambda: self._bus.publish(self.open[letter.n]))
        answer.add_done_callback(partial(self._answered, letter))

    def _answered(self, letter: OutboxMessage, answer: asyncio.Future[Published]) -> None:
        """Go on with the lane when the broker has stored its head; otherwise try the same message again later."""
        if answer.cancelled() or answer.exception() is not None:
            if self._is_own_fault(letter, answer):
                self._set_aside(letter, _why(answer))
            else:
                self._hold(letter, _why(answer))
            return
        self._done(letter)
        self._went_through(letter, 1)

    def _is_own_fault(self, letter: OutboxMessage, answer: asyncio.Future[Published]) -> bool:
        """Tell whether the broker refuses this letter, and not whatever it is given: a full stream, a lost permission."""
        failure = None if answer.cancelled() else answer.exception()
        if not isinstance(failure, PublishFailed) or not failure.refused:
            return False
        times, through = self._refused.get(letter.n, (0, -1))
        if through < self._through:
            self._refused[letter.n] = times + 1, self._through
        return failure.unsendable or self._refused[letter.n][0] >= _OWN_FAULT

    def _set_aside(self, letter: OutboxMessage, why: str) -> None:
        """Drop a lane, from its head on."""
        if letter.lane not in self.refused:
            self._log.error("flow_not_published", lane=letter.lane, n=letter.n, msg_id=self.open[letter.n].msg_id, why=why)
        for one in self._lanes.pop(letter.lane):
            self._forget(one)
            self._refused.pop(one.n, None)
        self._idle.pop(letter.lane, None)
        self._few.pop(letter.lane, None)
        self.refused.add(letter.lane)
        self.aside[letter.lane] = letter.n  # before what was left out already, if there was any
        if self._held:
            self._retry_later()  # this may have been the one that was to find out whether the broker takes anything
        else:
            self._stuck, self.trouble = False, ""
        self._stored(0, 0)

    def _went_through(self, letter: OutboxMessage, count: int) -> None:
        """Note that the broker takes what it is given."""
        self._through += 1
        self._retry_in = _RETRY_FIRST
        self._stuck = self._told = False
        if self._held:
            self._retry_later()
        else:
            self.trouble = ""
        self._stored(letter.n, count)

    def _hold(self, letter: OutboxMessage, why: str) -> None:
        """Keep a message that the broker did not take. It is published again later, ever later while nothing goes through."""
        self._held.append(letter)
        self._stuck = True
        self.trouble = why
        if self._bus.connected and not self._told:  # once until something goes through
            message = self.open[letter.n]
            self._log.warning("publish_failed", subject=message.subject, msg_id=message.msg_id, why=why)
        self._told = self._bus.connected
        self._retry_later()

    def _retry_later(self) -> None:
        """See to it that what is held is published again."""
        if self._retrying:
            return
        self._retrying = True
        asyncio.get_running_loop().call_later(self._retry_in, self._retry)
        self._retry_in = min(self._retry_in * 2, _RETRY_LAST)

    def _retry(self) -> None:
        """Publish what is held: all of it where something went through since, else one to find out whether anything does.

        A broker that refuses (a full stream, a lost permission) is asked once a second and not once for each flow. Which one is asked
        goes round: the reason may lie with the message itself, which is why none of them goes into a batch.
        """
        self._retrying = False
        for _ in range(min(1, len(self._held)) if self._stuck else len(self._held)):
            self._send(self._held.popleft())


def _why(answer: asyncio.Future[Published]) -> str:
    """Say why the broker has not stored something."""
    return "cancelled" if answer.cancelled() else str(answer.exception())
