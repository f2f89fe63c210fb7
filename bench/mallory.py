"""Flood a worker in every way that a neighbour can (issue 14 B): a process of its own, which `bench.neighbours` starts.

    python -m bench.mallory '{"name": "status", "url": "nats://…", "http": "http://…", "mcp": "http://…", "seconds": 5}'

It prints a line when it has prepared, floods when it reads one, and prints one when the flood begins and one when it is over: every round
is answered in full before the next. It is nice to the others: on another machine its own work would be no work of this one.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from bench.load import Wire
from nats_taskflow.units import rfc3339

BIG = "x" * 240_000
_PATIENCE = 180.0
_TIMERS, _BURSTS, _APART, _AHEAD = 5_000, 2, 4.0, 40.0
_INBOX = "_INBOX.mallory"

Flood = Callable[[], object]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: a flood's name, where, and for how long rounds of it are begun."""

    name: str
    url: str
    http: str
    mcp: str
    seconds: float


def frame(subject: str, body: bytes, msg_id: str = "") -> bytes:
    """Encode a request, or a message whose PubAck is asked for."""
    if not msg_id:
        return b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), _INBOX.encode(), len(body), body)
    headers = f"NATS/1.0\r\nNats-Msg-Id: {msg_id}\r\n\r\n".encode()
    sizes = len(headers), len(headers) + len(body)
    return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject.encode(), _INBOX.encode(), *sizes, headers, body)


def request(verb: str, **fields: Any) -> bytes:
    """Encode a request of mallory's on `api`."""
    return frame(f"taskflow.api.mallory.{verb}", json.dumps(fields).encode())


def command(size: int) -> bytes:
    """Encode a command of mallory's that starts a flow, with so much in its state."""
    body = {"controller_id": "m", "goal": "g", "state": {"t": "x" * size}}
    return frame("taskflow.cmd.mallory.start", json.dumps(body).encode(), uuid4().hex)


class Mallory:
    """An agent that floods. Each method whose name is a flood's prepares it, and returns what one round does."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._wire = Wire(order.url, "taskflow.evt.mallory.*.*", _INBOX)
        self._begin = 0.0

    def run(self) -> None:
        """Prepare, wait for the word, flood."""
        flood: Flood = getattr(self, self._order.name)()
        self._tell({"prepared": True})
        sys.stdin.readline()
        if self._begin:
            assert time.time() < self._begin, "the timers are due before the flood may begin"
            time.sleep(self._begin - time.time())
        self._tell({"began": True})
        began, rounds = time.monotonic(), 0
        while not rounds or (time.monotonic() - began < self._order.seconds and not self._begin):
            flood()
            rounds += 1
        self._tell({"rounds": rounds, "seconds": time.monotonic() - began})

    def _tell(self, told: dict[str, Any]) -> None:
        """Print a line."""
        print(json.dumps(told), flush=True)

    def _burst(self, frames: list[bytes], *, answers: int = 0, kind: str = "", events: int = 0) -> list[bytes]:
        """Send everything at once; returns the answers, once as many have come, and as many events of a kind."""
        self._wire.socket.sendall(b"".join(frames))  # the broker reads, whether what it has for us is read or not
        got: list[bytes] = []
        until, heard, end = time.monotonic() + _PATIENCE, 0, f".{kind}".encode()
        while len(got) < answers or heard < events:
            if not select.select([self._wire.socket], (), (), max(until - time.monotonic(), 0.0))[0]:
                raise TimeoutError(f"{len(got)} of {answers} answers, {heard} of {events} events have come")
            for subscription, subject, payload in self._wire.read():
                if subscription == b"2":
                    got.append(payload)
                elif subject.endswith(end):
                    heard += 1
        return got

    def _ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Ask, and return the answer."""
        answer: dict[str, Any] = json.loads(self._burst([request(verb, **fields)], answers=1)[0])
        assert answer["ok"], answer
        return answer

    def _large(self) -> str:
        """Start a flow with a large state, and return its id."""
        flow: str = self._ask("start", controller_id="m", goal="g", state={"t": BIG})["flow"]["id"]
        return flow

    def status(self) -> Flood:
        """B4: 6,000 requests of 100 bytes, each answered with 240 KB."""
        frames = [request("status", flow_id=self._large())] * 6_000
        return lambda: self._burst(frames, answers=6_000)

    def steps(self) -> Flood:
        """B5: pages of one step over 250 steps of 240 KB."""
        flow = self._large()
        for number in range(250):
            self._ask("observe", flow_id=flow, run_id=f"r{number}", task="t", status="running", result=BIG)
        return lambda: self._burst([request("steps", flow_id=flow, limit=1)] * 8, answers=8)

    def stores(self) -> Flood:
        """B6: messages of 900 KB, which the limit forbids, and of 250 KB, which it allows."""
        large = b"x" * 900_000

        def flood() -> None:
            """Store both."""
            frames = [frame("taskflow.cmd.mallory.start", large, uuid4().hex) for _ in range(20)] + [command(250_000) for _ in range(20)]
            self._burst(frames, answers=40, kind="started", events=20)

        return flood

    def commands(self) -> Flood:
        """B7: 25,000 small commands."""
        return lambda: self._burst([command(1) for _ in range(25_000)], answers=25_000, kind="started", events=25_000)

    def advance(self) -> Flood:
        """B8: 200 changes of 75 bytes to a state of 240 KB."""
        flow = self._large()
        return lambda: self._burst([request("advance", flow_id=flow, patch={"n": n}) for n in range(200)], answers=200)

    def large(self) -> Flood:
        """B9: 60 commands of 240 KB at once."""
        return lambda: self._burst([command(240_000) for _ in range(60)], answers=60, kind="started", events=60)

    def timers(self) -> Flood:
        """B10: 5,000 timers due at once, and again four seconds later."""
        self._begin = time.time() + _AHEAD
        for burst in range(_BURSTS):
            starts = [request("start", controller_id="m", goal="g")] * _TIMERS
            flows = [json.loads(answer)["flow"]["id"] for answer in self._burst(starts, answers=_TIMERS)]
            until = {"kind": "timer", "at": rfc3339(int(1e6 * (self._begin + 0.2 + burst * _APART)))}
            waits = [request("wait", flow_id=flow, wait_condition=until) for flow in flows]
            assert all(b'"ok":true' in answer for answer in self._burst(waits, answers=_TIMERS))
        return lambda: self._burst([], kind="resumed", events=_BURSTS * _TIMERS)

    def refused(self) -> Flood:
        """B11: 200 bodies of 240 KB that are no JSON at their end."""
        body = b'{"flow_id":"' + self._large().encode() + b'","patch":{"t":"' + BIG.encode() + b'"},,}'
        frames = [frame("taskflow.api.mallory.advance", body)] * 200
        return lambda: self._burst(frames, answers=200)

    def metrics(self) -> Flood:
        """B12: six loops that fetch /metrics."""

        def loop(until: float) -> None:
            """Fetch until the time is over."""
            while time.monotonic() < until:
                with self._connected(self._order.http) as at:
                    at.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    while at.recv(1 << 16):
                        pass

        def flood() -> None:
            """Run the loops."""
            until = time.monotonic() + self._order.seconds
            loops = [threading.Thread(target=loop, args=(until,)) for _ in range(6)]
            for each in loops:
                each.start()
            for each in loops:
                each.join()

        return flood

    def halves(self) -> Flood:
        """B12: 230 connections to `mcp --http` that send half a request, made again when they are closed."""

        def flood() -> None:
            """Hold them."""
            until, held = time.monotonic() + self._order.seconds, set[socket.socket]()
            while time.monotonic() < until:
                held |= set(self._halves(230 - len(held)))
                closed = select.select(list(held), (), (), 0.2)[0]
                held -= {each for each in closed if self._is_over(each)}
            for each in held:
                each.close()

        return flood

    def _halves(self, number: int) -> Iterator[socket.socket]:
        """Make connections that send half a request."""
        for _ in range(number):
            at = self._connected(self._order.mcp)
            at.sendall(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n")
            yield at

    def _is_over(self, at: socket.socket) -> bool:
        """Tell whether the other side has closed the connection."""
        try:
            over = not at.recv(1 << 16)
        except ConnectionError:
            over = True
        if over:
            at.close()
        return over

    def _connected(self, url: str) -> socket.socket:
        """Connect to where a URL points."""
        at = urlsplit(url)
        return socket.create_connection((at.hostname or "127.0.0.1", at.port or 80), timeout=_PATIENCE)


FLOODS = {
    "status": "B4: 6,000 status of a flow of 240 KB",
    "steps": "B5: 8 pages of one step, 250 × 240 KB",
    "stores": "B6: 20 × 900 KB and 20 × 250 KB stored",
    "commands": "B7: 25,000 commands",
    "advance": "B8: 200 advances of a state of 240 KB",
    "large": "B9: 60 commands of 240 KB at once",
    "timers": "B10: 5,000 timers due at once, twice",
    "refused": "B11: 200 refused bodies of 240 KB",
    "metrics": "B12: six loops on /metrics",
    "halves": "B12: 230 half-open connections, MCP",
}

if __name__ == "__main__":
    os.nice(10)
    Mallory(msgspec.json.decode(sys.argv[1], type=Order)).run()
