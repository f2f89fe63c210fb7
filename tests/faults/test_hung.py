"""A worker that hangs is not fed to the watchdog any more, and is started again (RELIABILITY 3, row 27). The test plays systemd."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.e2e.stage import Stage
from tests.faults.disturbing import ended, holding, loaded, side_by_side
from tests.faults.launcher import LAUNCHER
from tests.faults.report import Row
from tests.faults.verdict import Verdict, verdict

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

WATCHDOG = 2.0
Record = Callable[[Row], None]


class Manager:
    """Plays systemd: hears what the worker says, and knows how long it has said nothing."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self.path)
        self.heard: list[str] = []

    async def hear(self, within: float) -> str | None:
        """Return the next thing said, or None when it was silent that long."""
        try:
            async with asyncio.timeout(within):
                said = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        except TimeoutError:
            return None
        self.heard.append(said.decode())
        return self.heard[-1]

    async def until(self, said: str) -> None:
        """Return once something that begins like this was said."""
        while not (await self.hear(10.0) or "nothing for ten seconds").startswith(said):
            assert self.heard, f"never heard {said}"

    async def hungry(self) -> None:
        """Return when the watchdog was not fed in time."""
        while await self.hear(WATCHDOG) is not None:
            pass

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[tuple[Stage, Manager]]:
    """Give a stage whose worker speaks to a manager."""
    with closing(Manager(folder / "notify")) as manager:
        settings = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": str(int(WATCHDOG * 1_000_000))}
        async with Stage(folder, settings=settings, program=LAUNCHER) as stage:
            yield stage, manager


async def test_systemd_hears_of_the_start_the_life_and_the_stop(tmp_path: Path) -> None:
    async with watching(tmp_path) as (stage, manager):
        await manager.until("READY=1\nSTATUS=")
        await manager.until("WATCHDOG=1")
        await manager.until("WATCHDOG=1")
        assert await stage.stop() == 0
        await manager.until("STOPPING=1\nSTATUS=")


async def barked(stage: Stage, manager: Manager) -> None:
    """Do what systemd does when the watchdog was not fed: SIGABRT, and start again."""
    await manager.hungry()
    os.kill(stage.pid, signal.SIGABRT)
    assert await ended(stage) == -signal.SIGABRT


Hang = Callable[[Stage, Manager, ExitStack], Awaitable[None]]


async def hang_the_loop(stage: Stage, manager: Manager, later: ExitStack) -> None:
    """Have the worker sleep in the middle of a decision, on its event loop's thread."""
    assert await stage.stop() == 0
    await stage.start(FLOW_FAILPOINT="decide.before:20:hang")


async def hang_the_database(stage: Stage, manager: Manager, later: ExitStack) -> None:
    """Have the writing thread wait inside SQLite for another process, longer than the watchdog does."""
    await manager.until("WATCHDOG=1")
    later.enter_context(holding(stage.path, "BEGIN IMMEDIATE"))


HANGS = {"loop": hang_the_loop, "database": hang_the_database}


@pytest.mark.scenario("hang")
async def test_a_worker_that_hangs_is_started_again_and_has_lost_nothing(tmp_path: Path, dice: random.Random, record: Record) -> None:
    """Side by side: most of the time it is waited for the watchdog."""

    seeds = {what: dice.random() for what in HANGS}

    async def case(folder: Path, what: str) -> Verdict:
        return await hung_and_back(folder, random.Random(seeds[what]), record, what)

    found = await side_by_side(tmp_path, HANGS, case)
    assert {what: each.bad for what, each in found.items() if each.bad} == {}


async def hung_and_back(folder: Path, dice: random.Random, record: Record, what: str) -> Verdict:
    """Hang a worker under load, do what systemd does, and judge."""
    loop = asyncio.get_running_loop()
    async with watching(folder) as (stage, manager):
        agent = await stage.agent("kate")
        with ExitStack() as later:
            async with loaded(stage, dice, agent) as load:
                await HANGS[what](stage, manager, later)
                await barked(stage, manager)
                later.close()
                began = loop.time()
                await stage.start()
                took = loop.time() - began
        found = await verdict(stage, load, agent, at_least=20, clean_logs=False)
    record(found.row("hang", faults=1, back=[took], note=f"hang the {what}, WATCHDOG_USEC {WATCHDOG:g} s"))
    return found
