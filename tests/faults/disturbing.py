"""What several scenarios do to a worker and its load: play it meanwhile, see how a process ended, wait until work goes on."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

from nats.errors import Error as NatsError

from tests.e2e.stage import CONSUMERS, INBOUND, Agent, Stage, encoded, new_id
from tests.eventually import eventually
from tests.faults.ledger import Ledger
from tests.faults.load import PARTS, Load

NO_SIGNAL = cast("signal.Signals", 0)
"""Sent to a process it does nothing."""


@asynccontextmanager
async def loaded(stage: Stage, dice: random.Random, *agents: Agent, rate: float = 15, parts: Sequence[str] = PARTS) -> AsyncIterator[Load]:
    """Play a load as long as the block runs; at its end the begun flows are seen through."""
    load = Load(agents, dice, parts=parts)
    await load.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(load.play(rate=rate))
        yield load
        load.stop()


Result = TypeVar("Result")


async def side_by_side(
    folder: Path, names: Iterable[str], play: Callable[[Path, str], Awaitable[Result]], *, at_once: int = 100
) -> dict[str, Result]:
    """Play a case for each name, each in a folder of its own; an error says whose it is."""
    slots = asyncio.Semaphore(at_once)

    async def case(name: str) -> Result:
        async with slots:
            own = folder / (name.replace(" ", "-") or "nothing")
            own.mkdir()
            try:
                return await play(own, name)
            except BaseException as bad:
                bad.add_note(f"in the case {name!r}")
                raise

    async with asyncio.TaskGroup() as group:
        cases = {name: group.create_task(case(name)) for name in names}
    return {name: task.result() for name, task in cases.items()}


async def ended(stage: Stage, *, within: float = 20.0) -> int:
    """Wait until the worker has ended by itself, or by what it was sent; return its exit code."""
    return await stage._end(NO_SIGNAL, within)


async def at_work(agent: Agent, ledger: Ledger, *, within: float = 30.0) -> float:
    """Return how many seconds it took until a request was committed and answered."""
    began = time.monotonic()
    flow_id = new_id()
    body = {"controller_id": "probe", "goal": "probe", "flow_id": flow_id}
    operation = ledger.command(agent.name, f"probe-{flow_id}", flow_id, "start")
    operation.tries, operation.invoked = 1, began

    async def answered() -> bool:
        with suppress(NatsError, TimeoutError, OSError):
            return bool((await agent.api("start", body, operation.id))["ok"])
        return False

    await eventually(answered, within=within)
    operation.acknowledged = time.monotonic()
    return time.monotonic() - began


@contextmanager
def holding(path: Path, begin: str) -> Iterator[sqlite3.Connection]:
    """Be another process that has the database open, in a transaction that begins like this, and ends it at the end of the block."""
    other = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        other.execute(begin)
        other.execute("SELECT count(*) FROM meta").fetchone()
        yield other
        other.execute("ROLLBACK")
    finally:
        other.close()


async def hasten(agent: Agent, ack_wait: float) -> None:
    """Have the broker deliver again what is not settled within these seconds, instead of 30."""
    for consumer in CONSUMERS:
        info = json.loads((await agent.client.request(f"$JS.API.CONSUMER.INFO.{INBOUND}.{consumer}")).data)
        config = {**info["config"], "ack_wait": int(ack_wait * 1_000_000_000)}
        body = encoded({"stream_name": INBOUND, "config": config, "action": "update"})
        answer = json.loads((await agent.client.request(f"$JS.API.CONSUMER.CREATE.{INBOUND}.{consumer}", body)).data)
        assert "error" not in answer, answer


def epochs_overlap(database: sqlite3.Connection) -> list[str]:
    """I-25: along the journal the epoch never goes back: a worker that was taken over has written nothing since."""
    query = "SELECT n, epoch, lag(epoch) OVER (ORDER BY n) AS before FROM flow_events"
    return [
        f"I-25: entry {n} was written by epoch {epoch}, after one of epoch {before}"
        for n, epoch, before in database.execute(f"SELECT * FROM ({query}) WHERE epoch < before")  # noqa: S608  our own query
    ]
