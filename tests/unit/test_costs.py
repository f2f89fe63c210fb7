"""What the hot path costs, counted and never timed: statements, thread hops, function calls, publishes, steps of SQLite.

Every bound is in `BOUNDS`, some ten per cent above what it was when it was set; `python -m tests.unit.test_costs` prints what it is now.
Whoever makes the worker cheaper lowers the bound with it; whoever needs more says why in the commit that raises it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast
from unittest.mock import patch

import aiosqlite
import msgspec
import pytest

from nats_taskflow.bus.port import Bus, Delivery, OutgoingMessage, Published
from nats_taskflow.doors.flow_manager import FlowManager
from nats_taskflow.engine import batch as batches
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.id_mint import IdMint
from nats_taskflow.engine.reader import make_reader
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Reply, StartFlow
from nats_taskflow.services.outbox import events_of_batch, read_events
from nats_taskflow.services.relay import Relay
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.store.records import Batch
from nats_taskflow.store.sqlite.opening import take_values_as_they_are
from nats_taskflow.testing.database import InlineStore, fresh
from nats_taskflow.units import rfc3339
from nats_taskflow.wire.inbound import Identity, Inbound
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.reply_bindings import Binding
from nats_taskflow.wire.subjects import Subjects
from tests.flows import KATE, TOPIC, external, parking
from tests.running import Running, VirtualClock, running
from tests.service.line import living

# Some ten per cent above what it is today; what is exact has no room. Python 3.12 and later call less (inlined comprehensions).
BOUNDS: dict[str, float] = {
    "calls_to_read": 82,
    "calls_to_resume": 222,
    "calls_to_start": 196,
    "calls_to_tell": 20,
    "calls_to_read_back": 30,
    "hops_of_resumes": 1,
    "hops_of_starts": 1,
    "hops_of_an_idle_tick": 1,
    "statements_of_a_resume": 5,
    "publishes_of_a_resume": 1,
    "settlements_of_a_resume": 1,
    "bytes_of_a_waiting_flow": 50,
}

FEW, MANY = 20, 220
_ROUNDS = 8
"""Batches of two sizes: the difference is what each message costs, what is the same is what a batch costs."""


# -- what is counted


class Calls:
    """Counts the calls of Python and C functions in this thread while it is on."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _: FrameType, event: str, __: Any) -> None:
        self.count += event in ("call", "c_call")

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        before = sys.getprofile()
        gc.disable()  # a collection calls what it frees, whenever it comes
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(before)
            gc.enable()


@contextlib.contextmanager
def hops() -> Iterator[list[str]]:
    """Note every trip to a database's thread."""
    seen: list[str] = []
    real: Callable[..., Coroutine[Any, Any, Any]] = aiosqlite.Connection._execute

    async def noted(self: aiosqlite.Connection, fn: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(getattr(fn, "__name__", repr(type(fn))))
        return await real(self, fn, *args, **kwargs)

    with patch.object(aiosqlite.Connection, "_execute", noted):
        yield seen


@contextlib.contextmanager
def steps(database: sqlite3.Connection) -> Iterator[list[int]]:
    """Count the steps of SQLite's machine: they grow with the rows that are looked at."""
    seen = [0]

    def one() -> int:
        seen[0] += 1
        return 0

    database.set_progress_handler(one, 1)
    try:
        yield seen
    finally:
        database.set_progress_handler(None, 0)


@contextlib.asynccontextmanager
async def inline() -> AsyncIterator[tuple[Running, sqlite3.Connection]]:
    """Run an engine whose database has no thread: everything happens here, the same in every run."""
    take_values_as_they_are()  # as the worker does: a call for each, in the place of exceptions that nobody counts
    database = await fresh()
    store, _ = await InlineStore.on(database)
    clock = VirtualClock()
    engine = Engine(store, clock=clock, policy=Policy(), max_batch=10_000)
    manager = FlowManager(engine)
    committing = asyncio.create_task(engine.run())
    try:
        with patch.object(batches, "_LONG", 3600.0):  # a busy machine must not cut a batch in two
            yield Running(store, engine, manager, WaitEngine(engine), clock), database
    finally:
        engine.close()
        await committing
        database.close()


def flow_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


async def start(run: Running, numbers: range) -> None:
    """Start flows, as one batch of commands with an identity."""
    await all_of(
        [
            run.engine.submit(
                StartFlow(flow_id=flow_id(n), controller_id="k", goal="g", owner_session_key=KATE, state_json={"text": "x" * 100}),
                Identity("cmd:kate", f"s-{n}", b"d" * 32),
                source="TASKFLOW_IN",
                seq=10_000 + n,
            )
            for n in numbers
        ]
    )


async def parked(run: Running, numbers: range, **condition: Any) -> None:
    """Start flows and park them."""
    await start(run, numbers)
    await all_of(
        [
            run.engine.submit(
                parking(flow_id(n), condition or external(f"c-{n}")),
                Identity("cmd:kate", f"w-{n}", b"d" * 32),
                source="TASKFLOW_IN",
                seq=20_000 + n,
            )
            for n in numbers
        ]
    )


async def resume(run: Running, numbers: range) -> None:
    """Resume flows by one batch of replies."""
    outcomes = await all_of(
        [
            run.engine.submit(
                Reply(
                    topic=TOPIC,
                    correlation_id=f"c-{n}",
                    payload={"n": n, "text": "x" * 200},
                    event_id=f"e-{n}",
                    arrived_us=run.clock.us,
                    key=f"{TOPIC}\nc-{n}\ne-{n}",
                ),
                Identity("reply", f"{TOPIC}\nc-{n}\ne-{n}", b"d" * 32),
                source="TASKFLOW_IN",
                seq=30_000 + n,
            )
            for n in numbers
        ]
    )
    assert {outcome.name for outcome in outcomes} == {"resumed"}


async def all_of(submitted: list[asyncio.Future[SubmissionOutcome]]) -> list[SubmissionOutcome]:
    outcomes = await asyncio.gather(*submitted)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return list(outcomes)


# -- the costs, one function each


async def calls_to_read() -> float:
    """Function calls from a delivery to a stimulus."""
    read = make_reader(Subjects(), ReplyBindings([Binding(TOPIC)], Subjects()), IdMint())
    found = [
        Delivery(
            subject=TOPIC,
            headers={"Nats-Msg-Id": f"e-{n}"},
            body=msgspec.json.encode({"correlation_id": f"c-{n}", "payload": {"n": n, "text": "x" * 200}}),
            stream="TASKFLOW_IN",
            seq=n,
            attempt=1,
            arrived_us=n,
            token="",
        )
        for n in range(1, MANY + 1)
    ]
    read(found[0])
    calls = Calls()
    with calls.on():
        verdicts = [read(delivery) for delivery in found]
    assert all(isinstance(verdict, Inbound) for verdict in verdicts)
    return calls.count / MANY


async def _calls_each(act: Callable[[Running, range], Coroutine[Any, Any, None]], *, park: bool) -> float:
    """Function calls from submission to commit and back, for each message beyond what a batch costs."""
    counted = []
    for count in (FEW, MANY):
        async with inline() as (run, _):
            warm, rest = range(5), range(5, 5 + count)
            if park:
                await parked(run, range(5 + count))
            await act(run, warm)
            calls = Calls()
            with calls.on():
                await act(run, rest)
        counted.append(calls.count)
    return (counted[1] - counted[0]) / (MANY - FEW)


async def calls_to_resume() -> float:
    """Function calls to decide and store a resume."""
    return await _calls_each(resume, park=True)


async def calls_to_start() -> float:
    """Function calls to decide and store a start."""
    return await _calls_each(start, park=False)


async def calls_to_tell() -> float:
    """Function calls from a committed batch to the events that are published."""
    batches: list[Batch] = []
    async with inline() as (run, _):
        await parked(run, range(MANY))
        run.engine.listen(batches.append)
        await resume(run, range(MANY))
    fresh = events_of_batch(Subjects())
    calls = Calls()
    with calls.on():
        letters = fresh(batches[0])
    assert len(letters) == MANY
    return calls.count / MANY


async def calls_to_read_back() -> float:
    """Function calls from a journal row to the event that is published, where the relay has not kept up."""
    async with inline() as (run, _):
        await parked(run, range(MANY))
        await resume(run, range(MANY))
        read = read_events(run.store, Subjects())
        last = 3 * MANY
        await read(last, 1)
        calls = Calls()
        with calls.on():
            letters = await read(last, MANY)
    assert len(letters) == MANY
    assert all(letter.message is not None for letter in letters)
    return calls.count / MANY


async def _hops(act: Callable[[Running, range], Coroutine[Any, Any, None]], count: int, *, park: bool) -> list[str]:
    """Trips to the database's threads for one batch."""
    with tempfile.TemporaryDirectory() as folder:
        async with running(str(Path(folder) / "flows.db")) as run:
            if park:
                await parked(run, range(count))
            with hops() as seen:
                await act(run, range(count))
    return seen


async def hops_of_resumes() -> float:
    """Thread hops of a batch of resumes, whatever its size."""
    few, many = [await _hops(resume, count, park=True) for count in (FEW, MANY)]
    assert few == many
    return len(many)


async def hops_of_starts() -> float:
    """Thread hops of a batch of starts, whatever its size."""
    few, many = [await _hops(start, count, park=False) for count in (FEW, MANY)]
    assert few == many
    return len(many)


async def statements_of_a_resume() -> float:
    """Statements that SQLite executes for each resume, beyond what a batch costs: one for each row that is written."""
    counted = []
    for count in (FEW, MANY):
        async with inline() as (run, database):
            await parked(run, range(count))
            executed: list[str] = []
            database.set_trace_callback(executed.append)
            await resume(run, range(count))
            database.set_trace_callback(None)
            counted.append(len(executed))
    return (counted[1] - counted[0]) / (MANY - FEW)


async def hops_of_an_idle_tick() -> float:
    """Queries of a tick with nothing due."""
    with tempfile.TemporaryDirectory() as folder:
        async with running(str(Path(folder) / "flows.db")) as run:
            await parked(run, range(FEW), kind="timer", at=rfc3339(run.clock.us + 3_600_000_000))
            with hops() as seen:
                report = await run.waits.tick()
    assert report.scanned == FEW
    return len(seen)


async def steps_of_an_idle_tick(waiting: int = FEW) -> float:
    """Steps of SQLite for a tick with nothing due."""
    async with inline() as (run, database):
        await parked(run, range(waiting), kind="timer", at=rfc3339(run.clock.us + 3_600_000_000))
        with steps(database) as seen:
            await run.waits.tick()
    return seen[0]


async def steps_of_a_resume(waiting: int = FEW) -> float:
    """Steps of SQLite to resume one flow."""
    async with inline() as (run, database):
        await parked(run, range(waiting))
        with steps(database) as seen:
            await resume(run, range(1))
    return seen[0]


async def _published() -> tuple[float, float]:
    """What the whole worker asks the broker to publish and to settle for each resume."""
    with tempfile.TemporaryDirectory() as folder:
        async with living(Path(folder) / "flows.db") as line:
            for n in range(FEW):
                await line.parked(f"c-{n}")
            await line.settled()
            line.bus.asked.clear()
            line.bus.settled.clear()
            for n in range(FEW):
                await line.reply({"n": n}, f"c-{n}", event_id=f"e-{n}")
            await line.settled()
            return len(line.bus.asked) / FEW, len(line.bus.settled) / FEW


async def publishes_of_a_resume() -> float:
    """Messages published for each resume."""
    return (await _published())[0]


async def settlements_of_a_resume() -> float:
    """Settlements sent for each resume."""
    return (await _published())[1]


class Sink:
    """A broker that stores whatever is published at once, and keeps nothing."""

    connected = True

    def publish(self, _: OutgoingMessage) -> asyncio.Future[Published]:
        stored: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        stored.set_result(Published(stream="EVT", seq=1, duplicate=False))
        return stored


async def bytes_of_a_waiting_flow() -> float:
    """Python memory that each waiting flow keeps in engine, timers and relay; what a last batch leaves behind is no growth."""
    async with inline() as (run, _):
        bus = cast("Bus", Sink())
        read, fresh = read_events(run.store, Subjects()), events_of_batch(Subjects())
        relay = Relay("events", bus, run.engine, read=read, adds=lambda batch: bool(batch.events), rows_of=fresh)
        going = [asyncio.create_task(relay.run())]
        held = []
        tracemalloc.start()
        for first in range(0, _ROUNDS * MANY, MANY):
            await parked(run, range(first, first + MANY))
            assert await relay.drain(10)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        for task in going:
            task.cancel()
        await asyncio.wait(going)
    return (held[-1] - held[1]) / (MANY * (_ROUNDS - 2))


COSTS: dict[str, Callable[[], Coroutine[Any, Any, float]]] = {
    cost.__name__: cost
    for cost in (
        calls_to_read,
        calls_to_resume,
        calls_to_start,
        calls_to_tell,
        calls_to_read_back,
        hops_of_resumes,
        hops_of_starts,
        hops_of_an_idle_tick,
        statements_of_a_resume,
        publishes_of_a_resume,
        settlements_of_a_resume,
        bytes_of_a_waiting_flow,
    )
}


@pytest.mark.parametrize("name", COSTS)
async def test_the_hot_path_costs_no_more_than_its_bound(name: str) -> None:
    cost = await COSTS[name]()
    assert cost <= BOUNDS[name], f"{name} was at most {BOUNDS[name]:g} and is {cost:g}: make it cheaper, or say why not where you raise it"


def test_every_bound_bounds_a_cost() -> None:
    assert BOUNDS.keys() == COSTS.keys()


@pytest.mark.parametrize("cost", [steps_of_an_idle_tick, steps_of_a_resume])
async def test_sqlite_takes_as_many_steps_with_few_flows_waiting_as_with_a_thousand(
    cost: Callable[[int], Coroutine[Any, Any, float]],
) -> None:
    assert await cost(FEW) == await cost(1000)


if __name__ == "__main__":
    for name, cost in COSTS.items():
        sys.stdout.write(f"{name}: {asyncio.run(cost()):g}, bound {BOUNDS[name]:g}\n")
