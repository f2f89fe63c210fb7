"""Keep one stream's messages, and one durable consumer's place in them, the way JetStream does. In the process, by an injected clock."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from nats_taskflow.bus.filters import filters_in
from nats_taskflow.bus.port import Ack, Backlog, Delivery, Headers, InProgress, Nak, Published, PublishFailed, Settlement, Term
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.wire.headers import MSG_ID, weight
from nats_taskflow.wire.subjects import covers

_NS_PER_US = 1000
WireMessage = tuple[str, bytes, Headers]
"""A message on its way in: subject, body, headers."""
_BORN = count(1)


class StoredMessage(NamedTuple):
    """A message as a stream keeps it; `at_us` is when it was stored, in microseconds."""

    seq: int
    subject: str
    headers: Headers
    body: bytes
    at_us: int


class StreamStore:
    """The messages of one stream under its limits (`max_age`, `max_bytes`, `discard`), with its duplicate window."""

    def __init__(self, config: Json) -> None:
        self.config = config
        self.messages: dict[int, StoredMessage] = {}
        self.last_seq = 0
        self.created = f"stream {next(_BORN)}"
        self._bytes = 0
        self._ids: dict[str, tuple[int, int]] = {}

    @property
    def first(self) -> int:
        """The lowest sequence that is kept; one past the last where nothing is."""
        return next(iter(self.messages), self.last_seq + 1)

    def since(self, seq: int) -> Iterator[StoredMessage]:
        """Give the messages behind a place, in order."""
        return (self.messages[at] for at in range(max(seq + 1, self.first), self.last_seq + 1) if at in self.messages)

    def captures(self, subject: str) -> bool:
        """Tell whether the stream captures the subject."""
        return any(covers(pattern, subject) for pattern in self.config["subjects"])

    def store(self, subject: str, body: bytes, headers: Headers, now: int) -> Published:
        """Keep a message, unless its id was kept within the duplicate window; raises `PublishFailed` when full."""
        self._forget_old(now)
        msg_id = headers.get(MSG_ID)
        if msg_id in self._ids:
            return Published(stream=self.config["name"], seq=self._ids[msg_id][0], duplicate=True)
        if 0 < self.config.get("max_msg_size", -1) < len(body):
            raise PublishFailed(f"the broker refused a message on {subject}: message size exceeds maximum allowed (10054)", refused=True)
        limit = self.config.get("max_bytes", -1)
        while 0 < limit < self._bytes + len(body):
            if self.config.get("discard") == "new" or not self.messages:
                raise PublishFailed(f"the broker refused a message on {subject}: maximum bytes exceeded (10047)", refused=True)
            self._drop(next(iter(self.messages)))
        self.last_seq += 1
        self.messages[self.last_seq] = StoredMessage(self.last_seq, subject, headers, body, now)
        self._bytes += len(body)
        if msg_id:
            self._ids[msg_id] = (self.last_seq, now)
        return Published(stream=self.config["name"], seq=self.last_seq)

    def check_room(self, messages: Sequence[WireMessage]) -> None:
        """Raise `PublishFailed` where not all of the messages would be stored: one has been, or there is no room."""
        ids = [headers[MSG_ID] for _, _, headers in messages if MSG_ID in headers]
        if len(set(ids)) < len(ids) or any(name in self._ids for name in ids):
            raise PublishFailed("the broker refused a batch: it contains duplicate message id (10201)", duplicate=True)
        full = 0 < self.config.get("max_bytes", -1) < self._bytes + sum(len(body) for _, body, _ in messages)
        if full and self.config.get("discard") == "new":
            raise PublishFailed("the broker refused a batch: maximum bytes exceeded (10047)", refused=True)

    def _forget_old(self, now: int) -> None:
        """Drop messages beyond `max_age` and ids beyond the duplicate window; both are in order of time."""
        age = self.config.get("max_age", 0) // _NS_PER_US
        while age and self.messages and self.messages[oldest := next(iter(self.messages))].at_us <= now - age:
            self._drop(oldest)
        window = self.config.get("duplicate_window", 0) // _NS_PER_US
        while self._ids and self._ids[oldest_id := next(iter(self._ids))][1] <= now - window:
            del self._ids[oldest_id]

    def _drop(self, seq: int) -> None:
        """Remove a message."""
        self._bytes -= len(self.messages.pop(seq).body)


class ConsumerState:
    """What one durable consumer knows: how far it has delivered, and which deliveries are not settled."""

    def __init__(self, stream: StreamStore, config: Json) -> None:
        self.config = config
        self._stream = stream
        self._name: str = config["name"]
        self._ack_wait = int(config["ack_wait"]) // _NS_PER_US
        self._next, self._rewound = 1, 0
        self._wanted: list[int] = []  # in order, of the first `_seen` messages; by the filters `_by`
        self._seen, self._by = 0, frozenset[str]()
        self._due: dict[int, int] = {}  # unsettled sequence → when it is delivered again, in microseconds
        self._attempts: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (due, seq); an entry counts only while `_due` agrees

    @property
    def floor(self) -> int:
        """The last message up to which everything is settled, as the server tells it: one that the filters let through."""
        wanted = self._look()
        at = bisect_left(wanted, min(self._due, default=self._next))
        return max(wanted[at - 1] if at else 0, self._rewound)

    @property
    def next_open(self) -> int:
        """The first message that is not settled, or not yet there; of those that the filters let through."""
        wanted = self._look()
        at = bisect_left(wanted, min(self._due, default=self._next))
        return wanted[at] if at < len(wanted) else self._stream.last_seq + 1

    def deliver(self, now: int) -> Delivery | None:
        """Hand out what is due again, else the next new message; None when there is nothing, or too much is unsettled."""
        due = self.next_due()
        if due is not None and due <= now:
            return self._hand_out(heapq.heappop(self._heap)[1], now)
        if len(self._due) >= self.config["max_ack_pending"]:
            return None
        wanted = self._look()
        at = bisect_left(wanted, max(self._next, self._stream.first))
        if at == len(wanted):
            return None
        self._next = wanted[at] + 1
        return self._hand_out(wanted[at], now)

    def settle(self, seq: int, settlement: Settlement, now: int) -> None:
        """Take a verdict; one on a delivery that is already settled changes nothing."""
        if seq not in self._due:
            return
        match settlement:
            case Ack() | Term():
                del self._due[seq]
                self._attempts.pop(seq, None)
            case Nak(delay=delay):
                self._deliver_again(seq, now + int(delay * 1_000_000))
            case InProgress():
                self._deliver_again(seq, now + self._ack_wait)

    def rewind(self, to: int | None = None) -> None:
        """Go back to the floor, or to `to`. Attempts start from 1 again, as on the server."""
        self._rewound = self.floor if to is None else to - 1
        self._next = self._rewound + 1
        self._due.clear()
        self._attempts.clear()
        self._heap.clear()

    def next_due(self) -> int | None:
        """Return when the next redelivery is due, in microseconds."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def backlog(self) -> Backlog:
        """Tell where it stands."""
        return Backlog(floor=self.floor, delivered=self._next - 1, pending=self._undelivered())

    def _hand_out(self, seq: int, now: int) -> Delivery | None:
        """Make a delivery; a message that has left the stream meanwhile is settled."""
        message = self._stream.messages.get(seq)
        if message is None:
            self._due.pop(seq, None)
            return self.deliver(now)
        self._attempts[seq] = self._attempts.get(seq, 0) + 1
        self._deliver_again(seq, now + self._ack_wait)
        stream = self._stream.config["name"]
        return Delivery(
            subject=message.subject,
            headers=message.headers,
            body=message.body,
            stream=stream,
            seq=seq,
            attempt=self._attempts[seq],
            arrived_us=message.at_us,
            token=f"{stream} {self._name} {seq}",
            pending=self._undelivered(),
            size=len(message.body) + weight(message.headers),
        )

    def _deliver_again(self, seq: int, at_us: int) -> None:
        """Set when an unsettled message is delivered again."""
        self._due[seq] = at_us
        heapq.heappush(self._heap, (at_us, seq))

    def _look(self) -> list[int]:
        """Return which messages the filters let through, in order."""
        by = frozenset(filters_in(self.config))
        if by != self._by:
            self._wanted, self._seen, self._by = [], 0, by
        for message in self._stream.since(self._seen):
            if not by or any(covers(one, message.subject) for one in by):
                self._wanted.append(message.seq)
            self._seen = message.seq
        return self._wanted

    def _undelivered(self) -> int:
        """Count the messages not handed out yet."""
        wanted = self._look()
        return len(wanted) - bisect_left(wanted, max(self._next, self._stream.first))
