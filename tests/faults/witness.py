"""Clients that remember what they were told, and ask after a fault whether it is still so.

Each walker takes one flow from change to change, on `api` and on `cmd`, and repeats what was not answered under the same id until it is.
What it was told is a promise: before the worker starts again, the database that came through the fault must already hold it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self
from uuid import uuid4

from nats.errors import Error as NatsError

from tests.e2e.stage import INBOUND, TOPIC, Agent, Heard, Json, encoded, event
from tests.eventually import eventually

_PATIENCE = 60.0
_AWAY = (NatsError, TimeoutError, OSError)


class Witness:
    """Walkers of one agent. `told`: outcomes by command id, byte for byte; `accepted`: commands that the broker has acknowledged."""

    def __init__(self, agent: Agent, *, walkers: int = 6) -> None:
        self.told: dict[str, bytes] = {}
        self.accepted: list[tuple[str, str]] = []
        self.heard: Heard
        self._agent = agent
        self._walkers = walkers
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._stopping = self._abandoned = False
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Begin to walk."""
        self.heard = await self._stack.enter_async_context(self._agent.listening("taskflow.evt.>"))
        await self._group.__aenter__()
        self._tasks = [self._group.create_task(self._walk()) for _ in range(self._walkers)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None) -> None:
        """Have each walker end what it has begun; after a failure, at once."""
        self._stopping = True
        self._abandoned = self._abandoned or kind is not None
        try:
            await self._group.__aexit__(kind, bad, trace)
        finally:
            await self._stack.aclose()

    def abandon(self) -> None:
        """Leave off in the middle: there is nobody who would answer."""
        self._abandoned = True
        for task in self._tasks:
            task.cancel()

    async def more(self, count: int) -> None:
        """Return once the walkers were told this many more outcomes."""
        enough = len(self.told) + count
        async with asyncio.timeout(_PATIENCE):
            while len(self.told) < enough:
                self._more.clear()
                await self._more.wait()

    def _note(self, command_id: str, outcome: bytes) -> None:
        """Keep what was told."""
        assert self.told.setdefault(command_id, outcome) == outcome, f"{command_id} was told two things"
        self._more.set()

    async def _walk(self) -> None:
        """Take one flow through its changes."""
        flow_id = str(uuid4())
        await self._command("start", {"flow_id": flow_id, "controller_id": "kate/walk", "goal": "keep on"})
        step = 0
        while not self._stopping:
            step += 1
            await self._ask("advance", {"flow_id": flow_id, "patch": {"asked": step}})
            await self._command("advance", {"flow_id": flow_id, "patch": {"commanded": step}})
            correlation_id = uuid4().hex
            await self._ask("wait", {"flow_id": flow_id, "wait_condition": event(correlation_id)})
            body = encoded({"correlation_id": correlation_id, "payload": {"n": step}})
            await self._agent.insist(TOPIC, body, {"Nats-Msg-Id": f"reply-{correlation_id}"}, within=_PATIENCE)
            await self._resumed(flow_id, correlation_id)
        await self._ask("finish", {"flow_id": flow_id})

    async def _ask(self, verb: str, body: Json) -> None:
        """Ask on `api` until there is an answer."""
        command_id = uuid4().hex
        request = {**body, "command_id": command_id}

        async def answered() -> bool:
            answer = await self._answer(verb, request)
            if answer is not None:
                self._note(command_id, answer)
            return answer is not None

        await eventually(answered, within=_PATIENCE)

    async def _command(self, verb: str, body: Json) -> None:
        """Have a durable command accepted, and ask for its outcome until there is one."""
        command_id = uuid4().hex
        await self._agent.insist(f"taskflow.cmd.{self._agent.name}.{verb}", encoded(body), {"Nats-Msg-Id": command_id}, within=_PATIENCE)
        self.accepted.append((self._agent.name, command_id))

        async def decided() -> bool:
            answer = await self._answer("outcome", {"command_id": command_id})
            if answer is None or b'"no_outcome"' in answer:
                return False
            self._note(command_id, answer)
            return True

        await eventually(decided, within=_PATIENCE)

    async def _resumed(self, flow_id: str, correlation_id: str) -> None:
        """Return once the reply has resumed the flow."""

        async def there() -> bool:
            answer = await self._answer("status", {"flow_id": flow_id})
            return answer is not None and correlation_id.encode() in answer and b'"status":"running"' in answer

        await eventually(there, within=_PATIENCE)

    async def _answer(self, verb: str, body: Json) -> bytes | None:
        """Ask once; None where nobody answers, or only says that it cannot now."""
        if self._abandoned:  # a request that is cancelled may say that it timed out
            raise asyncio.CancelledError
        with suppress(*_AWAY):
            answer = await self._agent.client.request(f"taskflow.api.{self._agent.name}.{verb}", encoded(body), timeout=1)
            return None if b'"unavailable"' in answer.data else answer.data
        return None

    async def floor(self) -> int:
        """Ask the broker up to which message the worker has acknowledged everything."""

        async def asked() -> tuple[int] | None:
            """Ask once; right after its start, and beside others, it may take its time."""
            with suppress(*_AWAY):
                return (await self._agent.settled_up_to(),)
            return None

        found = await eventually(asked, within=60)
        assert found is not None
        return found[0]

    def missing(self, database: sqlite3.Connection, floor: int) -> list[str]:
        """Say what clients and broker were told that the database does not know: I-4, I-21."""
        if not database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'inbox'").fetchall():
            return [f"{command_id} was told, and there is not even a table" for command_id in self.told]
        results = dict(database.execute("SELECT key, result FROM inbox WHERE key IS NOT NULL").fetchall())
        bad = [
            f"{command_id} was told {told!r}, and now it is {results.get(command_id)!r}"
            for command_id, told in self.told.items()
            if results.get(command_id) != told
        ]
        known = {
            f"{flow_id}:{seq}"
            for flow_id, seq in database.execute("SELECT f.id, e.seq FROM flow_events AS e JOIN flows AS f ON f.n = e.flow")
        }
        bad += [f"I-21: the event {name} was published" for name in self.heard.ids - known]
        taken = {seq for (seq,) in database.execute("SELECT source_seq FROM inbox WHERE source = ?", (INBOUND,))}
        return bad + [f"I-4: message {seq} was acknowledged" for seq in range(1, floor + 1) if seq not in taken]
