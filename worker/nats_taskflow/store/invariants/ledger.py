"""Keep what was read of a stream where it can be queried.

A large ledger is on disk. It has digests instead of bodies.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from nats_taskflow.wire.headers import MSG_ID

_TABLE = """CREATE TABLE messages (place INTEGER PRIMARY KEY, subject TEXT NOT NULL, msg_id TEXT NOT NULL, flow TEXT NOT NULL,
  seq INTEGER NOT NULL, digest BLOB NOT NULL, content BLOB NOT NULL, kind TEXT NOT NULL, owner TEXT NOT NULL) STRICT"""
_CANONICAL = msgspec.json.Encoder(order="sorted")


class LedgerMessage(msgspec.Struct, frozen=True):
    """A message as a stream keeps it; `seq` is its place."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes


class LedgerEntry(msgspec.Struct, frozen=True):
    """What is kept of a message.

    `digest` is of the body's bytes, `content` of what they mean, whatever the order of the keys. `flow` and `number` are the event's, as
    its body has them; empty and 0 for what is no event.
    """

    place: int
    subject: str
    msg_id: str
    flow: str
    number: int
    digest: bytes
    content: bytes
    kind: str
    owner: str


class Ledger:
    """The messages of one stream.

    `first`: the lowest place that the stream still kept when it was read.
    """

    def __init__(self, messages: Iterable[LedgerMessage] = (), *, first: int = 1) -> None:
        self.first = first
        # An empty name: a temporary database, which SQLite keeps in memory as long as it is small.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._database.close)  # by whichever thread the garbage collector runs on
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(_TABLE)
        self._database.execute("CREATE INDEX messages_by_flow ON messages (flow, place)")
        self._database.execute("CREATE INDEX messages_by_id ON messages (msg_id)")
        self._database.execute("BEGIN")
        self.add(messages)

    def add(self, messages: Iterable[LedgerMessage]) -> None:
        """Add the next messages, in the order of the stream."""
        self._database.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (_row(message) for message in messages))

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM messages").fetchone()[0])

    def of(self, flow_id: str) -> list[LedgerEntry]:
        """List what was published of a flow, in the order of the stream."""
        return [LedgerEntry(*row) for row in self._database.execute("SELECT * FROM messages WHERE flow = ? ORDER BY place", (flow_id,))]

    def flows(self) -> Iterator[str]:
        """Yield every flow of which anything was published."""
        for (flow_id,) in self._database.execute("SELECT DISTINCT flow FROM messages WHERE flow <> '' ORDER BY flow"):
            yield flow_id

    def strangers(self) -> Iterator[LedgerEntry]:
        """Yield the messages that are no events."""
        for row in self._database.execute("SELECT * FROM messages WHERE flow = '' ORDER BY place"):
            yield LedgerEntry(*row)

    def named(self, msg_id: str) -> LedgerEntry | None:
        """Return the first message with this id."""
        row = self._database.execute("SELECT * FROM messages WHERE msg_id = ? ORDER BY place LIMIT 1", (msg_id,)).fetchone()
        return LedgerEntry(*row) if row else None


def digest(data: bytes) -> bytes:
    """Return the digest by which bodies are compared."""
    return blake2b(data, digest_size=16).digest()


def content_digest(event: Mapping[str, Any]) -> bytes:
    """Return the digest of what an event says, whatever the order of its keys."""
    return digest(_CANONICAL.encode(event))


def _row(message: LedgerMessage) -> tuple[Any, ...]:
    """Return the row of a message."""
    try:
        event = msgspec.json.decode(message.body, type=dict[str, Any])
        flow, number, data = str(event["subject"]), int(event["sequence"]), dict(event["data"])
        about = (flow, number, digest(message.body), content_digest(event), str(data["kind"]), str(data["owner_session_key"]))
    except (ValueError, KeyError, TypeError, RecursionError):  # a dead letter may be anything
        about = ("", 0, digest(message.body), b"", "", "")
    return (message.seq, message.subject, message.headers.get(MSG_ID, ""), *about)
