"""Publish at a rate, or as fast as a window of unacknowledged messages lets, and time what comes back: a process of its own.

    python -m bench.load '{"url": "nats://…", "kind": "resume", "first": 0, "count": 1000, …}'

It shares two cores with the broker and the worker, so it must be cheap: it speaks the NATS protocol over one socket, sends bytes that
were encoded before the clock runs, and of what it hears reads the subject alone. Each publish asks for its PubAck: the window counts
them, and a refusal is an error. One message per flow is awaited (`listen`); a flow that is heard of twice counts once.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

TOPIC = "agent.delegate.reply"
_FLOW = re.compile(rb"-7000-8000-([0-9a-f]{12})")
_READ = 1 << 20


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `rate` 0: as fast as `window` lets. `patience`: seconds after the last publish until the rest is given up."""

    url: str
    kind: str
    count: int
    first: int = 0
    size: int = 300
    rate: float = 0
    window: int = 1000
    listen: str = "taskflow.evt.*.*.resumed"
    subject: str = TOPIC
    patience: float = 60.0


def flow_id(number: int) -> str:
    """Return the id of a flow of the bench: a UUIDv7 by its form, and found again in any subject."""
    return f"00000000-0000-7000-8000-{number:012x}"


def padding(size: int, used: int) -> str:
    """Return what fills a body up to its size."""
    return "x" * max(size - used, 1)


def reply(number: int, size: int) -> dict[str, Any]:
    """Return the body of a delegate's reply."""
    return {"correlation_id": f"c-{number}", "payload": {"n": number, "flow": flow_id(number), "text": padding(size, 120)}}


def messages(order: Order, number: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Return the messages of one flow: subject, body, command id."""
    flow = flow_id(number)
    if order.kind in ("start", "life"):
        state = {"text": padding(order.size, 200)}
        yield "taskflow.cmd.kate.start", {"controller_id": "kate/bench", "goal": "measure", "flow_id": flow, "state": state}, f"s-{number}"
    if order.kind == "life":
        wait = {"kind": "external_event", "topic": TOPIC, "correlation_id": f"c-{number}"}
        yield "taskflow.cmd.kate.wait", {"flow_id": flow, "wait_condition": wait}, f"w-{number}"
    if order.kind in ("resume", "life"):
        yield order.subject, reply(number, order.size), ""
    if order.kind == "taskiq":
        task = {"task_id": f"t-{number}", "task_name": "resumed", "labels": {}, "labels_types": {}}
        yield order.subject, {**task, "args": [reply(number, order.size)], "kwargs": {}}, ""
    if order.kind == "life":
        yield "taskflow.cmd.kate.finish", {"flow_id": flow, "final_state": {"done": True}}, f"f-{number}"


def frames(order: Order, inbox: str) -> list[bytes]:
    """Encode everything that is published about each flow."""
    return [b"".join(_frame(*message, inbox) for message in messages(order, n)) for n in range(order.first, order.first + order.count)]


def _frame(subject: str, body: dict[str, Any], msg_id: str, inbox: str) -> bytes:
    """Encode one publish as the protocol has it."""
    payload = json.dumps(body).encode()
    if not msg_id:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), inbox.encode(), len(payload), payload)
    headers = f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n\r\n".encode()
    size = len(headers) + len(payload)
    return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject.encode(), inbox.encode(), len(headers), size, headers, payload)


class Wire:
    """A connection: two subscriptions, `1` for what is awaited and `2` for PubAcks."""

    def __init__(self, url: str, listen: str, inbox: str) -> None:
        at = urlsplit(url)
        self.socket = socket.create_connection((at.hostname or "127.0.0.1", at.port or 4222))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        hello = json.dumps({"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "bench", "version": "1"})
        self.socket.sendall(f"CONNECT {hello}\r\nSUB {listen} 1\r\nSUB {inbox} 2\r\nPING\r\n".encode())
        while b"PONG\r\n" not in self._rest:
            self._rest += self.socket.recv(_READ)
        self._rest = b""

    def read(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Return what has come: subscription, subject, payload with its headers."""
        more = self.socket.recv(_READ)
        if not more:
            raise ConnectionError("the broker closed the connection")
        data, at = self._rest + more, 0
        while (end := data.find(b"\r\n", at)) >= 0:
            words = data[at:end].split(b" ")
            if words[0] in (b"MSG", b"HMSG"):
                size = int(words[-1])
                if len(data) < end + size + 4:
                    break
                yield words[2], words[1], data[end + 2 : end + 2 + size]
                at = end + size + 4
                continue
            if words[0] == b"PING":
                self.socket.sendall(b"PONG\r\n")
            elif words[0] == b"-ERR":
                raise ConnectionError(data[at:end].decode())
            at = end + 2
        self._rest = data[at:]


class Run:
    """One run of an order."""

    def __init__(self, order: Order) -> None:
        inbox = f"_INBOX.bench.{time.time_ns():x}"
        self._order = order
        self._frames = frames(order, inbox)
        self._each = sum(1 for _ in messages(order, order.first))
        self._wire = Wire(order.url, order.listen, inbox)
        self._sent_at = [0.0] * order.count
        self._took = [0.0] * order.count
        self._sent = self._acked = self._heard = 0
        self._began = self._acked_at = 0.0

    def run(self) -> dict[str, Any]:
        """Send everything and hear everything, or give the rest up."""
        used = time.process_time()
        self._began = began = time.perf_counter()
        order, last = self._order, began
        while self._heard < order.count:
            now = time.perf_counter()
            allowed = self._allowed(now - began)
            if allowed:
                self._send(allowed)
                last = time.perf_counter()
            elif now - last > order.patience:
                break
            wait = max(began + self._sent / order.rate - now, 0.0) if order.rate and self._sent < order.count else 1.0
            if allowed and self._allowed(time.perf_counter() - began):
                wait = 0.0
            if select.select([self._wire.socket], (), (), min(wait, 1.0))[0]:
                self._hear()
        return self._told(time.perf_counter() - began, time.process_time() - used)

    def _allowed(self, elapsed: float) -> int:
        """Say for how many flows may be published now."""
        due = int(elapsed * self._order.rate) + 1 if self._order.rate else self._sent + self._order.window - self._open
        return max(min(due, self._order.count) - self._sent, 0)

    @property
    def _open(self) -> int:
        """For how many flows PubAcks are missing."""
        return self._sent - self._acked // self._each

    def _send(self, number: int) -> None:
        """Publish for the next flows."""
        now = time.perf_counter()
        self._sent_at[self._sent : self._sent + number] = [now] * number
        self._wire.socket.sendall(b"".join(self._frames[self._sent : self._sent + number]))
        self._sent += number

    def _hear(self) -> None:
        """Take what has come."""
        acked = self._acked
        for subscription, subject, payload in self._wire.read():
            if subscription == b"2":
                self._acked += 1
                if b'"error"' in payload or payload.startswith(b"NATS/1.0 503"):
                    raise ConnectionError(f"the broker refused a message: {payload.decode(errors='replace')[:200]}")
                continue
            found = _FLOW.search(subject)
            number = int(found[1], 16) - self._order.first if found else -1
            if 0 <= number < self._order.count and not self._took[number]:
                self._took[number] = time.perf_counter() - self._sent_at[number]
                self._heard += 1
        if self._acked > acked:
            self._acked_at = time.perf_counter()

    def _told(self, seconds: float, used: float) -> dict[str, Any]:
        """Return the figures."""
        took = sorted(t for t in self._took if t) or [0.0]
        percentiles = {name: 1000 * took[min(int(len(took) * part), len(took) - 1)] for name, part in (("p50", 0.5), ("p99", 0.99))}
        return {
            "count": self._order.count,
            "heard": self._heard,
            "seconds": seconds,
            "rate": self._heard / seconds,
            "acked_rate": self._acked / (self._acked_at - self._began) if self._acked else 0.0,
            "load_cpu_us": 1e6 * used / max(self._heard, 1),
            "max": 1000 * took[-1],
            **percentiles,
        }


if __name__ == "__main__":
    print(json.dumps(Run(msgspec.json.decode(sys.argv[1], type=Order)).run()))
