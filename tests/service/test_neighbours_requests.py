"""What a neighbour can take with requests: every verb at its limits, from one that reads none of its answers, beside a quiet agent.

Counts, never times: what is loaded by a statement, how many answers are made and have not left, and who is answered meanwhile. The bytes
that wait at the broker's side are those of a socket that takes nothing more.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from nats_taskflow.bus.memory.broker import MemoryClient
from nats_taskflow.bus.port import NO_HEADERS
from nats_taskflow.doors.admin import explain
from nats_taskflow.doors.micro_service import _HEAVY, _TURNS_EACH, MicroService
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow, HeldReply
from nats_taskflow.store.sqlite.steps import PAGE_BYTES, FetchedRows
from nats_taskflow.store.sqlite.store import QueryConnection
from nats_taskflow.wire.admin_requests import OPERATIONS
from nats_taskflow.wire.headers import Headers
from nats_taskflow.wire.requests import QUERIES
from tests.eventually import eventually
from tests.service.line import TOPIC, Line

MANY = 8
FLOW = Flow(
    id="f",
    controller_id="mallory/x",
    goal="g",
    owner_session_key="agent:mallory:session:main",
    requester_origin="",
    current_step="init",
    status=FlowStatus.WAITING,
    created_us=0,
    updated_us=0,
    wait_id=1,
    parked_us=0,
)
HEAVY = "x" * 240_000
ROW = 256 * 1024
AT_ONCE = _TURNS_EACH.weight // _HEAVY
BY = {"operator": "ann", "reason": "r" * 4096}


class Seeded(NamedTuple):
    """Mallory's flows, all of 240 KB. `steps` has `MANY` runs of that, `busy` a journal of it; `waits` is one of those that wait."""

    steps: str
    busy: str
    waits: str
    letter: int


class Socket:
    """Takes no answer for one client, and counts what is made for it and has not left."""

    def __init__(self, line: Line, stuck: MemoryClient) -> None:
        self._tell = line.bus.tell
        self._inboxes = f"_INBOX.memory.{id(stuck)}."
        self._flows = asyncio.Event()
        self.in_flight: list[int] = []

    async def tell(self, subject: str, body: bytes, headers: Headers = NO_HEADERS) -> None:
        if subject.startswith(self._inboxes) and not self._flows.is_set():
            self.in_flight.append(len(body))
            await self._flows.wait()
        await self._tell(subject, body, headers)

    def holds(self, count: int) -> bool:
        return len(self.in_flight) >= count

    def flow(self) -> None:
        self._flows.set()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    made = Line(tmp_path / "flows.db")
    await made.start()
    yield made
    await made.stop()


async def ask(client: MemoryClient, subject: str, **fields: Any) -> dict[str, Any]:
    body, _ = await client.request(f"taskflow.{subject}", msgspec.json.encode(fields), within=60)
    answer: dict[str, Any] = msgspec.json.decode(body)
    return answer


@pytest.mark.parametrize("subject", ["api.mallory.advance", "api.mallory.status", "api.mallory.dance", "admin.list", "admin.cancel"])
@pytest.mark.parametrize("body", [b'{"a":1,,}', b"{}", b'{"flow_id":"none","patch":{}}'])
async def test_a_refused_request_is_forgotten_at_once_and_not_when_cycles_are_looked_for(line: Line, subject: str, body: bytes) -> None:
    def refusals() -> list[str]:
        return [repr(one) for one in gc.get_objects() if isinstance(one, FlowError)]

    before = refusals()
    gc.disable()
    try:
        await line.agent.request(f"taskflow.{subject}", body, within=60)
        await eventually(lambda: line.bus._server._admission is not None and not line.bus._server._admission._errands)
        assert refusals() == before
    finally:
        gc.enable()


async def seeded(line: Line) -> Seeded:
    """Fill the database with what weighs most."""

    async def done(verb: str, **fields: Any) -> str:
        answer = await ask(line.agent, f"api.mallory.{verb}", **fields)
        assert answer["ok"], answer
        flow_id: str = answer["flow"]["id"]
        return flow_id

    steps, busy = [await done("start", controller_id="mallory/x", goal="g", state={"text": HEAVY}) for _ in range(2)]
    waits = ""
    for number in range(MANY):
        await done("observe", flow_id=steps, run_id=f"r{number}", task="t", status="running", result=HEAVY)
        await done("advance", flow_id=busy, patch={"text": HEAVY, "n": number}, command_id=f"a{number}")
        waits = await done("start", controller_id="mallory/w", goal="g", state={"text": HEAVY})
        leaf = {"kind": "external_event", "topic": TOPIC, "accept": {"description": HEAVY[:14_000]}}
        leaves = [leaf | {"correlation_id": f"c-{number}-{at}"} for at in range(16)]
        await done("wait", flow_id=waits, wait_condition={"kind": "any_of", "conditions": leaves})
        await line.reply(HEAVY, f"early-{number}")
        await line.agent.publish("taskflow.cmd.mallory.start", b"{" + HEAVY.encode())
        await ask(line.agent, "admin.cancel", flow_id=await done("start", controller_id="m/x", goal="g"), **BY)
    await line.settled()
    letters = await ask(line.agent, "admin.dlq", grouped=False)
    return Seeded(steps, busy, waits, letters["letters"][0]["number"])


Floods = dict[str, Callable[[Seeded], dict[str, Any]]]

AGENTS: Floods = {
    "status": lambda its: {"flow_id": its.busy},
    "list_mine": lambda _: {"limit": 1000},
    "list_mine by a pattern": lambda _: {"limit": 1000, "controller": "mallory/*", "since": "1h"},
    "steps": lambda its: {"flow_id": its.steps, "limit": 1000},
    "step": lambda its: {"flow_id": its.steps, "run_id": "r0"},
    "history": lambda its: {"flow_id": its.busy, "limit": 1000},
    "history, the newest": lambda its: {"flow_id": its.busy, "limit": 1000, "newest": True},
    "waits": lambda _: {"limit": 1000},
    "why": lambda its: {"flow_id": its.waits},
    "outcome": lambda _: {"command_id": "a0"},
    "advance": lambda its: {"flow_id": its.busy},
    "observe": lambda its: {"flow_id": its.steps, "run_id": "r0", "task": "t", "status": "running"},
    "start": lambda _: {"controller_id": "mallory/x", "goal": "g", "state": {"text": HEAVY}},
}
OPERATORS: Floods = {
    "list": lambda _: {"limit": 1000},
    "list by a pattern": lambda _: {"limit": 1000, "controller": "*m*", "since": "1h"},
    "show": lambda its: {"flow_id": its.busy},
    "find": lambda _: {"part": "0"},
    "history": lambda its: {"flow_id": its.busy, "limit": 1000},
    "steps": lambda its: {"flow_id": its.steps, "limit": 1000},
    "waits": lambda _: {"limit": 1000},
    "who": lambda _: {"topic": TOPIC, "limit": 1000},
    "why": lambda its: {"flow_id": its.waits},
    "held": lambda _: {"limit": 1000},
    "dlq": lambda _: {"limit": 1000, "grouped": False},
    "dlq, groups": lambda _: {},
    "dlq, one": lambda its: {"action": "show", "number": its.letter},
    "stats": lambda _: {},
    "log": lambda _: {"limit": 1000},
}
NO_QUESTIONS = {"resume", "cancel", "fail", "release", "prune", "backup"}
FLOODS = [(f"api.mallory.{name.partition(' ')[0].rstrip(',')}", make) for name, make in AGENTS.items()]
FLOODS += [(f"admin.{name.partition(' ')[0].rstrip(',')}", make) for name, make in OPERATORS.items()]


def test_every_query_is_in_the_table() -> None:
    verbs = {subject.rpartition(".")[2] for subject, _ in FLOODS if subject.startswith("api.")}
    assert set(QUERIES) <= verbs
    assert {subject.rpartition(".")[2] for subject, _ in FLOODS if subject.startswith("admin.")} == set(OPERATIONS) - NO_QUESTIONS


async def test_no_verb_at_its_limits_takes_from_a_neighbour(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    fetch = QueryConnection._fetch

    async def spied(self: QueryConnection, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None) -> FetchedRows:
        page = await fetch(self, sql, parameters, room, heavy)
        loaded.append(sum(len(value) for row in page.rows for value in row if isinstance(value, bytes | str)))
        return page

    monkeypatch.setattr(QueryConnection, "_fetch", spied)
    monkeypatch.setattr(MicroService, "_weigh", lambda *_: None)  # as if nothing was known of any answer
    its, neighbour = await seeded(line), line.broker.client()
    hers = (await ask(neighbour, "api.kate.start", controller_id="kate/x", goal="g"))["flow"]["id"]
    for subject, make in FLOODS:
        loaded.clear()
        mallory = line.broker.client()
        socket = Socket(line, mallory)
        with monkeypatch.context() as patched:
            patched.setattr(line.bus, "tell", socket.tell)
            flood = [asyncio.create_task(ask(mallory, subject, **make(its))) for _ in range(MANY)]
            await eventually(partial(socket.holds, AT_ONCE))
            for _ in range(3):
                assert (await ask(neighbour, "api.kate.status", flow_id=hers))["ok"], subject
                assert (await ask(neighbour, "api.kate.advance", flow_id=hers))["ok"], subject
            in_flight = list(socket.in_flight)
            socket.flow()
            answers = await asyncio.gather(*flood)
        assert all(answer["ok"] for answer in answers), (subject, answers[0])
        assert len(in_flight) == AT_ONCE, (subject, "what is made waits for what has not left")
        assert sum(in_flight) <= AT_ONCE * (PAGE_BYTES + ROW), subject
        assert len(loaded) <= MANY * 150, (subject, "statements")
        assert max(loaded, default=0) <= PAGE_BYTES + ROW + ROW, (subject, "by one statement, its state and its wait")


def test_an_explanation_compares_ids_only_until_it_has_said_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    near = explain._nearness

    def counted(held: HeldReply, *more: Any) -> str | None:
        compared.append(held.event_id)
        return near(held, *more)

    monkeypatch.setattr(explain, "_nearness", counted)
    leaves = [{"kind": "external_event", "topic": TOPIC, "correlation_id": f"{'a' * 250}{leaf:02}"} for leaf in range(64)]
    flow = replace(FLOW, wait_json={"kind": "any_of", "conditions": leaves})
    reply = HeldReply(topic=TOPIC, correlation_id="", event_id="", arrived_us=0, expires_us=1, key="", payload=None)
    held = {n: replace(reply, correlation_id=f"{'a' * 250}x{n}", event_id=f"{n}") for n in range(500)}
    said = explain.explain(explain.Circumstances(now=0, flow_id=flow.id, flow=flow, held=held))
    assert sum(one.kind == "near" for one in said) == len(compared) == 5


async def test_answers_take_turns_by_what_the_last_ones_weighed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    mallory, neighbour = line.broker.client(), line.broker.client()
    small, hers = [(await ask(neighbour, f"api.{agent}.start", controller_id="x", goal="g"))["flow"]["id"] for agent in ("mallory", "kate")]
    large = (await ask(neighbour, "api.mallory.start", controller_id="x", goal="g", state={"text": HEAVY}))["flow"]["id"]

    async def at_once(flow_id: str) -> int:
        socket = Socket(line, mallory)
        with monkeypatch.context() as patched:
            patched.setattr(line.bus, "tell", socket.tell)
            flood = [asyncio.create_task(ask(mallory, "api.mallory.status", flow_id=flow_id)) for _ in range(4 * _TURNS_EACH.places)]
            await eventually(partial(socket.holds, AT_ONCE))
            for _ in range(3):
                assert (await ask(neighbour, "api.kate.status", flow_id=hers))["ok"]
            count = len(socket.in_flight)
            socket.flow()
            await asyncio.gather(*flood)
        return count

    assert await at_once(small) == AT_ONCE, "nothing is known yet"
    assert await at_once(small) == _TURNS_EACH.places
    assert await at_once(large) == _TURNS_EACH.places, "they were small until now"
    assert await at_once(large) * len(HEAVY) <= _TURNS_EACH.weight
