"""The load of the fault runs: flows that start, wait, are answered early, late and twice, time out, delegate, are cancelled; seeded.

Each flow plays one part, a list of steps whose possible ends are known. Every message has an id of its own and every payload is unique,
so that what comes out can be traced to what went in. Attempts that fail are repeated under the same id until the broker has the message,
but for those of the `doubtful` part, which are made once: they are what is in doubt, and may have happened or not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from tests.e2e.stage import TOPIC, Agent, Json, encoded, event, in_order
from tests.eventually import eventually
from tests.faults.ledger import Ledger, Operation

DELEGATE = "svc.faults"
_TIMEOUT = 2.0
_BEGUN = ("created", "started")
_PARKED = (*_BEGUN, "waiting")
_FAILURES = (NatsError, TimeoutError, OSError)

Kinds = tuple[str, ...]
ENDS: Mapping[str, Callable[[Kinds], bool]] = {
    "answered": lambda kinds: kinds == (*_PARKED, "resumed"),
    "idle": lambda kinds: kinds == _PARKED,
    "early": lambda kinds: kinds == (*_PARKED, "resumed"),
    "twice": lambda kinds: kinds == (*_PARKED, "resumed"),
    "rounds": lambda kinds: kinds == (*_BEGUN, *("waiting", "resumed") * 3, "finished"),
    "late": lambda kinds: kinds == (*_PARKED, "resumed", "finished"),
    "timer": lambda kinds: kinds in {(*_PARKED, "resumed"), _BEGUN},
    "timeout": lambda kinds: kinds == (*_PARKED, "resumed"),
    "stale": lambda kinds: kinds == (*_BEGUN, *("waiting", "resumed") * 2),
    "conflict": lambda kinds: kinds == (*_PARKED, "resumed"),
    "contested": lambda kinds: kinds == (*_BEGUN, "state_updated"),
    "race": lambda kinds: kinds in {(*_PARKED, "cancelled"), (*_PARKED, "resumed", "cancelled")},
    "cancelled": lambda kinds: kinds == (*_PARKED, "cancelled"),
    "delegated": lambda kinds: kinds == (*_PARKED, "resumed"),
    "steps": lambda kinds: kinds == (*_BEGUN, *("state_updated",) * 4, "finished"),
    "asked": lambda kinds: kinds == (*_BEGUN, *("state_updated",) * 3, "failed"),
    "doubtful": lambda kinds: kinds[:2] == _BEGUN and set(kinds[2:]) <= {"state_updated"},
}
"""For each part, whether a flow's journal is a possible end of it."""
PARTS = tuple(name for name in ENDS if name != "idle")


class Part(msgspec.Struct, frozen=True):
    """What one flow plays. `payload` is what must have resumed it last, None where nothing or anything may have."""

    name: str
    flow_id: str
    payload: Json | None


class Load:
    """Plays parts against a worker until told to stop, and keeps the ledger."""

    def __init__(self, agents: Sequence[Agent], dice: random.Random, *, parts: Sequence[str] = PARTS, patience: float = 300.0) -> None:
        self.ledger = Ledger()
        self.parts: list[Part] = []
        self.failures: list[str] = []
        self._agents = agents
        self._dice = dice
        self._names = tuple(parts)
        self._patience = patience
        self._stopping = asyncio.Event()
        self._number = 0
        self._idle = 0

    async def open(self) -> None:
        """Put up the delegate that the flows ask: it answers durably, and once for each request it hears."""
        await self._agents[0].client.subscribe(DELEGATE, cb=self._delegate)
        await self._agents[0].client.flush()

    async def flood(self, count: int) -> None:
        """Have the messages stored that make many flows, and more each time, wait for what never comes."""
        first, self._idle = self._idle + 1, self._idle + count
        players = [
            Player(self._agents[0], self.ledger, random.Random(self._dice.random()), -number, self._patience)
            for number in range(first, first + count)
        ]
        self.parts += [Part("idle", player.flow_id, None) for player in players]
        await in_order([player.idle for player in players])

    async def crowd(self, count: int) -> None:
        """Have many flows wait for what never comes, and return when they do."""
        await self.flood(count)
        await eventually(self._agents[0].nothing_pending, within=120)

    def stop(self) -> None:
        """Begin no more flows once each part is played; `play` returns when the begun ones have had all their messages stored."""
        self._stopping.set()

    async def play(self, *, rate: float, flows: int | None = None, at_once: int = 200) -> None:
        """Begin `rate` flows a second, as many as `flows` or until stopped, and see each of them through.

        However soon it is stopped, each part is played once: a fault that is over in no time must not leave a run without a load.
        No more than `at_once` are under way: a machine that cannot keep up plays slower, instead of being called a loser of messages.
        """
        started = time.monotonic()
        slots = asyncio.Semaphore(at_once)

        async def one() -> None:
            try:
                await self._one()
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            begun = 0
            while begun != flows and not (self._stopping.is_set() and begun >= len(self._names)):
                await slots.acquire()
                group.create_task(one())
                begun += 1
                wait = started + begun / rate - time.monotonic()
                if wait > 0:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), wait)
                else:
                    await asyncio.sleep(0)

    async def _one(self) -> None:
        """Play one flow's part, whichever the dice say."""
        self._number += 1
        name = self._names[self._number % len(self._names)] if self._number <= len(self._names) else self._dice.choice(self._names)
        player = self._player(self._dice.choice(self._agents), self._number)
        try:
            payload = await getattr(player, name)()
        except AssertionError as bad:
            self.failures.append(f"{player.flow_id} plays {name!r}: {bad}")
        else:
            self.parts.append(Part(name, player.flow_id, payload))

    def _player(self, agent: Agent, number: int) -> Player:
        """Make the player of a flow, with dice of its own: what others do at the same time does not change its play."""
        return Player(agent, self.ledger, random.Random(self._dice.random()), number, self._patience)

    async def _delegate(self, request: Msg) -> None:
        """Answer a delegated request; a repeat of the request gets the same answer under the same id."""
        asked = dict(request.headers or {})["Nats-Msg-Id"]
        if (name := f"answer-{asked}") not in self.ledger.operations:
            topic, _, correlation_id = request.reply.rpartition(".")
            self.ledger.reply((topic, correlation_id), name, asked.partition(":")[0], counts=False).tries = 1
        await stored(self._agents[0], request.reply, request.data, {"Nats-Msg-Id": name})
        self.ledger.operations[name].acknowledged = time.monotonic()


class Player:
    """One flow, its agent, and what the agent does with it: the parts."""

    def __init__(self, agent: Agent, ledger: Ledger, dice: random.Random, number: int, patience: float) -> None:
        self._agent = agent
        self._ledger = ledger
        self._dice = dice
        self._name = f"{agent.name}-{number}"
        self._patience = patience
        self._count = 0
        self.flow_id = str(UUID(int=dice.getrandbits(128), version=4))

    async def answered(self) -> Json | None:
        """Wait for a reply that comes after the wait."""
        await self._start()
        await self._wait("c")
        return await self._reply("c")

    async def idle(self) -> Json | None:
        """Wait for what never comes."""
        await self._start()
        await self._wait("never")
        return None

    async def early(self) -> Json | None:
        """Be answered before the wait, or before the flow exists."""
        if self._dice.random() < 0.5:
            payload = await self._reply("c")
            await self._start()
        else:
            await self._start()
            payload = await self._reply("c")
        await self._wait("c")
        return payload

    async def twice(self) -> Json | None:
        """Be told the same thing several times, under the id in the header (which the broker may drop) and in the body."""
        await self._start()
        await self._wait("c")
        payload: Json = {"n": f"{self._name}-twice"}
        name = f"{self._name}-twice"
        for turn in range(self._dice.randint(2, 4)):
            operation = self._ledger.reply((TOPIC, self._pair("c")), name, self.flow_id, turn=turn, counts=False)
            body = {"correlation_id": self._pair("c"), "payload": payload, "event_id": name}
            await self._store(operation, TOPIC, body, header=None)
        return payload

    async def rounds(self) -> Json | None:
        """Wait three times, each time for another reply, and finish."""
        await self._start()
        payload = None
        for turn in "abc":
            if self._dice.random() < 0.5:
                payload = await self._reply(turn)
                await self._wait(turn)
            else:
                await self._wait(turn)
                payload = await self._reply(turn)
            await self._until("running", turn)
        await self._command("finish", final_state={"done": True})
        return payload

    async def late(self) -> Json | None:
        """Be answered, finish, and be answered again."""
        payload = await self.answered()
        await self._until("running", "c")
        await self._command("finish")
        await self._reply("c")
        return payload

    async def timer(self) -> Json | None:
        """Wait for a moment: far enough ahead for most outages; after a longer one it lies in the past and is refused."""
        await self._start()
        at = datetime.now(UTC) + timedelta(seconds=2 + self._dice.random())
        await self._command("wait", wait_condition={"kind": "timer", "at": at.isoformat()})
        return None

    async def timeout(self) -> Json | None:
        """Wait for a reply that comes about when the wait times out."""
        await self._start()
        await self._wait("c", timeout="300ms")
        await asyncio.sleep(0.6 * self._dice.random())
        await self._reply("c")
        return None

    async def stale(self) -> Json | None:
        """Time out, wait for something else, and then get the answer to the first wait: it is not for the second."""
        await self._start()
        await self._wait("a", timeout="100ms")
        await self._until("running", "a", cause="timeout")
        await self._wait("b")
        await self._until("waiting", "a", cause="timeout")
        await self._reply("a")
        return await self._reply("b")

    async def conflict(self) -> Json | None:
        """Be told two things under one id: the first counts."""
        await self._start()
        await self._wait("c")
        name = f"{self._name}-conflict"
        payload: Json = {"n": name}
        for turn, said in enumerate((payload, {"n": "something else"})):
            operation = self._ledger.reply((TOPIC, self._pair("c")), name, self.flow_id, turn=turn, counts=False)
            await self._store(operation, TOPIC, {"correlation_id": self._pair("c"), "payload": said, "event_id": name}, header=None)
        return payload

    async def contested(self) -> Json | None:
        """Have two writers that saw the same revision: one wins, the other is told the revision it lost against."""
        await self._start()
        await self._until("running", "start")
        told = await asyncio.gather(*[self._ask("advance", patch={"by": at}, expected_revision=1, may_lose=True) for at in range(2)])
        codes = sorted(answer.get("error", {}).get("code", "") for answer in told)
        assert codes == ["", "revision_mismatch"], f"I-11: of two writers at revision 1 of {self.flow_id} one wins: {told}"
        return None

    async def race(self) -> Json | None:
        """Be cancelled and answered at once."""
        await self._start()
        await self._wait("c")
        await asyncio.gather(self._reply("c"), self._command("cancel", reason="race"))
        return None

    async def cancelled(self) -> Json | None:
        """Be cancelled while waiting: what waits already, not what the worker takes in together with its end (that is `race`)."""
        await self._start()
        await self._wait("c")
        await self._until("waiting", "start")
        await self._command("cancel", reason="enough")
        return None

    async def delegated(self) -> Json | None:
        """Ask a delegate and be resumed by its answer."""
        await self._start()
        payload: Json = {"n": f"{self._name}-delegated"}
        await self._command("delegate", to=DELEGATE, payload=payload)
        return payload

    async def steps(self) -> Json | None:
        """Go step by step, and finish."""
        await self._start()
        for step in range(4):
            await self._command("advance", patch={f"k{step}": f"{self._name}-{step}"})
        await self._command("finish")
        return None

    async def asked(self) -> Json | None:
        """Do it on `api`, each request under one command id until it is answered; every answer must be the first one, byte for byte."""
        await self._start()
        await self._until("running", "start")
        for step in range(3):
            await self._ask("advance", patch={f"k{step}": f"{self._name}-{step}"})
        await self._ask("fail", reason="as planned")
        return None

    async def doubtful(self) -> Json | None:
        """Publish changes once each, whether or not the broker says that it has them."""
        await self._start()
        for step in range(5):
            operation = self._open("advance")
            body = {"flow_id": self.flow_id, "patch": {operation.id: step}}
            with suppress(*_FAILURES):
                await self._try(operation, f"taskflow.cmd.{self._agent.name}.advance", body, operation.id)
        return None

    async def _start(self) -> None:
        """Start the flow under the id it was given."""
        await self._command("start", controller_id=f"{self._agent.name}/load", goal="survive")

    async def _wait(self, turn: str, **more: Any) -> None:
        """Park on the reply of a turn."""
        await self._command("wait", wait_condition=event(self._pair(turn), **more))

    async def _reply(self, turn: str) -> Json:
        """Answer the wait of a turn with a payload that nobody else sends."""
        self._count += 1
        operation = self._ledger.reply((TOPIC, self._pair(turn)), f"{self._name}-{self._count}-reply", self.flow_id)
        payload = {"n": operation.id}
        await self._store(operation, TOPIC, {"correlation_id": self._pair(turn), "payload": payload}, header=operation.id)
        return payload

    async def _command(self, verb: str, **body: Any) -> None:
        """Have a durable command stored."""
        operation = self._open(verb)
        await self._store(operation, f"taskflow.cmd.{self._agent.name}.{verb}", {"flow_id": self.flow_id, **body}, header=operation.id)

    async def _ask(self, verb: str, *, may_lose: bool = False, **body: Any) -> Json:
        """Have a command answered on `api`, and ask once more: the answer must stay the same."""
        operation = self._open(verb)
        request = encoded({"flow_id": self.flow_id, "command_id": operation.id, **body})
        answers: list[bytes] = []

        async def answered() -> bool:
            operation.tries += 1
            operation.invoked = operation.invoked or time.monotonic()
            try:
                answer = await self._agent.ask(verb, raw=request)
            except _FAILURES:
                operation.failed_tries += 1
                return False
            if (answer.headers or {}).get("Nats-Service-Error-Code") == "503":
                operation.failed_tries += 1
                return False
            operation.acknowledged = operation.acknowledged or time.monotonic()
            answers.append(answer.data)
            return len(answers) == 2

        await eventually(answered, within=self._patience)
        assert answers[0] == answers[1], f"{operation.id} was told {answers[0]!r}, then {answers[1]!r}"
        told: Json = msgspec.json.decode(answers[0])
        assert told["ok"] or may_lose, told
        operation.refused = not told["ok"]
        operation.revision = told["flow"]["revision"] if told["ok"] else None
        return told

    async def _until(self, status: str, turn: str, cause: str = "event") -> None:
        """Return once the flow has this status, as far as the agent can tell through the outages."""

        async def there() -> bool:
            with suppress(*_FAILURES):
                shown = await self._agent.api("status", {"flow_id": self.flow_id})
                met = shown.get("flow", {})
                meta = met.get("state", {}).get("resume_meta", {})
                resumed = meta.get("cause") == cause and (cause != "event" or meta.get("correlation_id") == self._pair(turn))
                return met.get("status") == status and (turn == "start" or resumed)
            return False

        await eventually(there, within=self._patience)

    def _pair(self, turn: str) -> str:
        """Return the correlation id of a turn."""
        return f"{self._name}-{turn}"

    def _open(self, verb: str) -> Operation:
        """Open the next command of this flow."""
        self._count += 1
        return self._ledger.command(self._agent.name, f"{self._name}-{self._count}-{verb}", self.flow_id, verb)

    async def _store(self, operation: Operation, subject: str, body: Json, *, header: str | None) -> None:
        """Publish until the broker says that it has it."""

        async def there() -> bool:
            with suppress(*_FAILURES):
                await self._try(operation, subject, body, header)
                return True
            return False

        await eventually(there, within=self._patience)

    async def _try(self, operation: Operation, subject: str, body: Json, header: str | None) -> None:
        """Publish once."""
        operation.tries += 1
        operation.invoked = operation.invoked or time.monotonic()
        try:
            headers = {"Nats-Msg-Id": header} if header else None
            await self._agent.js.publish(subject, encoded(body), headers=headers, timeout=_TIMEOUT)
        except _FAILURES:
            operation.failed_tries += 1
            raise
        operation.acknowledged = time.monotonic()


async def stored(agent: Agent, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Publish until the broker says that it has it."""
    await agent.insist(subject, body, headers, within=120)
