"""Keep a stream's messages, and a consumer's place in them, as JetStream does."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from nats_taskflow.bus.filters import filters_in
from nats_taskflow.bus.port import Ack, Backlog, Delivery, InProgress, Nak, Published, PublishFailed, Settlement, Term
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.wire.headers import MSG_ID, Headers, weight
from nats_taskflow.wire.subjects import covers

_NS_PER_US = 1000
_CREATED = count(1)


class WireMessage(NamedTuple):
    """A message on its way in."""

    subject: str
    body: bytes
    headers: Headers


class StoredMessage(NamedTuple):
    """A message in a stream. `at_us` is when it was stored, in microseconds."""

    seq: int
    subject: str
    headers: Headers
    body: bytes
    at_us: int


class StreamStore:
    """The messages of one stream, within its limits and its duplicate window."""

    def __init__(self, config: Json) -> None:
        self.config = config
        self.messages: dict[int, StoredMessage] = {}
        self.last_seq = 0
        self.created = f"stream {next(_CREATED)}"
        self._bytes = 0
        self._ids: dict[str, tuple[int, int]] = {}

    @property
    def first(self) -> int:
        """The lowest sequence in the stream; one past the last where it is empty."""
        return next(iter(self.messages), self.last_seq + 1)

    def since(self, seq: int) -> Iterator[StoredMessage]:
        """Yield the messages after a sequence, in order."""
        return (self.messages[at] for at in range(max(seq + 1, self.first), self.last_seq + 1) if at in self.messages)

    def captures(self, subject: str) -> bool:
        """Return whether the stream stores messages on this subject."""
        return any(covers(pattern, subject) for pattern in self.config["subjects"])

    def store(self, subject: str, body: bytes, headers: Headers, now: int) -> Published:
        """Store a message, unless the duplicate window has its id.

        Raises `PublishFailed` when the stream is full.
        """
        self._expire(now)
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
        """Raise `PublishFailed` unless all of these messages would be stored.

        A duplicate among them or a lack of room would prevent that.
        """
        ids = [message.headers[MSG_ID] for message in messages if MSG_ID in message.headers]
        if len(set(ids)) < len(ids) or any(msg_id in self._ids for msg_id in ids):
            raise PublishFailed("the broker refused a batch: it contains duplicate message id (10201)", duplicate=True)
        full = 0 < self.config.get("max_bytes", -1) < self._bytes + sum(len(message.body) for message in messages)
        if full and self.config.get("discard") == "new":
            raise PublishFailed("the broker refused a batch: maximum bytes exceeded (10047)", refused=True)

    def _expire(self, now: int) -> None:
        """Drop messages beyond `max_age`, and ids beyond the duplicate window."""
        # Both are in order of time.
        age = self.config.get("max_age", 0) // _NS_PER_US
        while age and self.messages and self.messages[oldest := next(iter(self.messages))].at_us <= now - age:
            self._drop(oldest)
        window = self.config.get("duplicate_window", 0) // _NS_PER_US
        while self._ids and self._ids[oldest_id := next(iter(self._ids))][1] <= now - window:
            del self._ids[oldest_id]

    def _drop(self, seq: int) -> None:
        self._bytes -= len(self.messages.pop(seq).body)


class ConsumerState:
    """One durable consumer: how far it has delivered, and what is not settled."""

    def __init__(self, stream: StreamStore, config: Json) -> None:
        self.config = config
        self._stream = stream
        self._name: str = config["name"]
        self._ack_wait = int(config["ack_wait"]) // _NS_PER_US
        self._next, self._rewound_to = 1, 0
        self._matches: list[int] = []  # the sequences up to `_matched_to` that pass `_filters`, in order
        self._matched_to, self._filters = 0, frozenset[str]()
        self._due: dict[int, int] = {}  # unsettled sequence → when it is delivered again, in microseconds
        self._attempts: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (due, seq); an entry counts only while `_due` agrees

    @property
    def floor(self) -> int:
        """The last message up to which everything is settled.

        As on the server, it is one that the filters let through.
        """
        matches = self._match()
        at = bisect_left(matches, min(self._due, default=self._next))
        return max(matches[at - 1] if at else 0, self._rewound_to)

    @property
    def next_open(self) -> int:
        """The first unsettled or future message that the filters let through."""
        matches = self._match()
        at = bisect_left(matches, min(self._due, default=self._next))
        return matches[at] if at < len(matches) else self._stream.last_seq + 1

    def deliver(self, now: int) -> Delivery | None:
        """Deliver what is due again, or the next new message.

        Returns None when there is neither, or when too much is unsettled.
        """
        due = self.next_due()
        if due is not None and due <= now:
            return self._delivery(heapq.heappop(self._heap)[1], now)
        if len(self._due) >= self.config["max_ack_pending"]:
            return None
        matches = self._match()
        at = bisect_left(matches, max(self._next, self._stream.first))
        if at == len(matches):
            return None
        self._next = matches[at] + 1
        return self._delivery(matches[at], now)

    def settle(self, seq: int, settlement: Settlement, now: int) -> None:
        """Settle a delivery; one that is settled already stays as it is."""
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
        """Go back to the floor, or to `to`. Attempts count from 1 again, as on the server."""
        self._rewound_to = self.floor if to is None else to - 1
        self._next = self._rewound_to + 1
        self._due.clear()
        self._attempts.clear()
        self._heap.clear()

    def next_due(self) -> int | None:
        """Return when the next redelivery is due, in microseconds."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def backlog(self) -> Backlog:
        """Return how far the consumer is."""
        return Backlog(floor=self.floor, delivered=self._next - 1, pending=self._undelivered())

    def _delivery(self, seq: int, now: int) -> Delivery | None:
        """Make a delivery of a message, or of the next one where this has left the stream."""
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
        self._due[seq] = at_us
        heapq.heappush(self._heap, (at_us, seq))

    def _match(self) -> list[int]:
        """Return the sequences that the filters let through, in order."""
        filters = frozenset(filters_in(self.config))
        if filters != self._filters:
            self._matches, self._matched_to, self._filters = [], 0, filters
        for message in self._stream.since(self._matched_to):
            if not filters or any(covers(pattern, message.subject) for pattern in filters):
                self._matches.append(message.seq)
            self._matched_to = message.seq
        return self._matches

    def _undelivered(self) -> int:
        matches = self._match()
        return len(matches) - bisect_left(matches, max(self._next, self._stream.first))
