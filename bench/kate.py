"""Be a quiet agent, and measure what becomes of one beside a neighbour: requests, commands until their events, timers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from math import inf
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from nats_taskflow.units import rfc3339
from tests.e2e.stage import Agent

PATIENCE = 240.0
_ASKS, _SENDS, _DUE, _TIMERS, _SILENCE = 0.02, 0.1, 0.2, 200, 10.0
_ADDRESS = "127.0.0.2"
"""Kate's own: HTTP counts by address."""


class Spread(msgspec.Struct):
    """Percentiles, in milliseconds."""

    p50: float
    p99: float
    most: float


class Taken(msgspec.Struct, kw_only=True):
    """What was measured in one phase: requests, commands until their events, the latest timer in milliseconds; and how much was lost."""

    api: Spread
    events: Spread
    late: float
    lost: int


class Kate:
    """A quiet agent. `ask`: what she asks every 20 ms; raises where she is refused."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.ask: Callable[[], Awaitable[None]] = self._status
        self._flow = ""
        self._due: dict[str, float] = {}
        self._sent: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._asked: list[float] = []
        self._refused = 0

    async def begin(self) -> None:
        """Start the flow that she asks for, and listen."""
        self._flow = await self._agent.start()
        await self._agent.client.subscribe("taskflow.evt.kate.*.*", cb=self._hear)

    async def arm(self) -> None:
        """Have timers due one after another, from three seconds on."""
        first = time.time() + 3.0
        for number in range(_TIMERS):
            flow, at = await self._agent.start(), first + number * _DUE
            await self._agent.api("wait", {"flow_id": flow, "wait_condition": {"kind": "timer", "at": rfc3339(int(1e6 * at))}})
            self._due[flow] = at
        await asyncio.sleep(max(first - time.time(), 0))

    async def watch(self, over: asyncio.Future[Any]) -> Taken:
        """Ask and send until the future is done; returns when all is heard, or given up."""
        self._asked, self._sent, self._refused, began = [], {}, 0, time.time()
        async with asyncio.TaskGroup() as group:
            paced = [asyncio.create_task(_paced(group, *each)) for each in ((self._one, _ASKS), (self._command, _SENDS))]
            await asyncio.wait([over])
            ended = time.time()
            for each in paced:
                each.cancel()
        over.result()
        due = {flow: at for flow, at in self._due.items() if began <= at < ended}
        await self._until_heard({*due, *self._sent})
        late = [1000 * (self._heard[flow] - at) for flow, at in due.items() if flow in self._heard]
        events = [1000 * (self._heard[flow] - at) for flow, at in self._sent.items() if flow in self._heard]
        lost = self._refused + len(due) + len(self._sent) - len(late) - len(events)
        return Taken(api=spread(self._asked), events=spread(events), late=max(late, default=0.0), lost=lost)

    async def _one(self) -> None:
        """Ask once."""
        began = time.perf_counter()
        try:
            await self.ask()
        except (NatsError, OSError, TimeoutError, AssertionError):
            self._refused += 1
        else:
            self._asked.append(1000 * (time.perf_counter() - began))

    async def _status(self) -> None:
        """Ask for the flow on `api`."""
        body = json.dumps({"flow_id": self._flow}).encode()
        answer = await self._agent.client.request("taskflow.api.kate.status", body, timeout=PATIENCE)
        assert json.loads(answer.data)["ok"]

    async def _command(self) -> None:
        """Send a command that starts a flow."""
        flow = str(uuid4())
        body = {"controller_id": "kate/bench", "goal": "measure", "flow_id": flow}
        self._sent[flow] = time.time()
        await self._agent.client.publish("taskflow.cmd.kate.start", json.dumps(body).encode(), headers={"Nats-Msg-Id": flow})

    async def _hear(self, message: Msg) -> None:
        """Note when a command's event came, or a timer's."""
        flow, kind = message.subject.split(".")[3:5]
        if (kind == "resumed" and flow in self._due) or (kind == "started" and flow in self._sent):
            self._heard.setdefault(flow, time.time())

    async def _until_heard(self, flows: set[str]) -> None:
        """Return once all were heard of, or nothing more came for some seconds."""
        missing, until = flows - self._heard.keys(), time.time() + _SILENCE
        while missing and time.time() < until:
            await asyncio.sleep(0.05)
            if len(left := missing - self._heard.keys()) < len(missing):
                missing, until = left, time.time() + _SILENCE


async def _paced(group: asyncio.TaskGroup, work: Callable[[], Coroutine[Any, Any, None]], every: float) -> None:
    """Begin the work by the clock, whatever has come of what was begun before."""
    at = asyncio.get_running_loop().time()
    while True:
        group.create_task(work())
        at += every
        await asyncio.sleep(at - asyncio.get_running_loop().time())


def spread(values: list[float]) -> Spread:
    """Return the percentiles; endless where nothing came."""
    ordered = sorted(values) or [inf]
    return Spread(*(ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99, 1.0)))


async def by_mcp(url: str) -> None:
    """Ask an MCP server for its tools, from an address of kate's own."""
    at = urlsplit(url)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
    head = f"POST {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    accept = f"Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(at.hostname, at.port, local_addr=(_ADDRESS, 0))
        try:
            writer.write((head + accept + body).encode())
            status = (await reader.read()).split(b" ")[1]
        finally:
            writer.close()
    assert status == b"200", status
