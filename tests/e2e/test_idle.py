"""An idle worker idles, and a busy one does not grow."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import checks
from tests.e2e.stage import Agent, Json, Stage, encoded, in_order, new_id
from tests.tiers import SIZE, Tests

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Figure = Callable[[str], None]
LONG = SIZE is Tests.NIGHTLY
WARM_UP, FLAT = 20_000, 50_000
COMMANDS = 100_000 if LONG else 66_000
"""How many in all; from `FLAT` on every table in memory is as large as it gets."""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return the memory that a process holds, in bytes (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


async def measuring(seconds: float) -> None:
    """Let time pass: this is the measurement itself, not a wait for anything."""
    never = asyncio.get_running_loop().create_future()
    try:
        await asyncio.wait_for(never, seconds)
    except TimeoutError:
        return


async def test_an_idle_worker_uses_less_than_two_percent_of_a_core(stage: Stage, kate: Agent, figure: Figure) -> None:
    await in_order([partial(kate.parked, f"c-{n}", timeout="1h") for n in range(100)])
    await measuring(1.5)  # the relay notes how far it came once a second: that is the end of the work, not idling
    before, began = cpu_seconds(stage.pid), time.monotonic()
    await measuring(4.0)
    used = (cpu_seconds(stage.pid) - before) / (time.monotonic() - began)
    figure(f"idle with 100 parked flows: {used:.2%} of a core")
    assert used < 0.02


async def test_a_worker_whose_broker_is_gone_does_not_spin(stage: Stage, kate: Agent, figure: Figure) -> None:
    await kate.parked("c-1")
    await stage.server.kill()
    await measuring(1.5)
    before, began = cpu_seconds(stage.pid), time.monotonic()
    await measuring(4.0)
    used = (cpu_seconds(stage.pid) - before) / (time.monotonic() - began)
    lines = stage.logs()[-1].read_text(encoding="utf-8").count("\n")
    figure(f"without a broker: {used:.2%} of a core, {lines} lines of log")
    assert used < 0.05
    assert lines < 40


@pytest.mark.usefixtures("full_start")  # of which every page is its own
@pytest.mark.full
async def test_memory_stays_flat_under_commands(stage: Stage, kate: Agent, figure: Figure) -> None:
    flows = [await kate.start(flow_id=new_id()) for _ in range(100)]
    chunk = 2000
    sizes: dict[int, int] = {}
    bodies: list[Json]
    began = 0.0
    async with kate.listening("taskflow.evt.*.*.state_updated") as heard:
        for first in range(0, COMMANDS, chunk):
            if first == WARM_UP:
                sizes[first], began = resident(stage.pid), time.monotonic()
            bodies = [{"flow_id": flows[n % 100], "patch": {"n": n}} for n in range(first, first + chunk)]
            for body in bodies:  # without waiting for each to be acknowledged: what is heard of has arrived
                headers = {"Nats-Msg-Id": f"n-{body['patch']['n']}"}
                await kate.client.publish("taskflow.cmd.kate.advance", encoded(body), headers=headers)
            await heard.count(first + chunk, within=60)
            sizes[first + chunk] = resident(stage.pid)
        rate = (COMMANDS - WARM_UP) / (time.monotonic() - began)
    grown = sizes[COMMANDS] - sizes[WARM_UP]
    mib = {at: f"{size / 2**20:.1f}" for at, size in sizes.items()}
    figure(f"memory in MiB after commands: {mib[WARM_UP]} ({WARM_UP}), {mib[FLAT]} ({FLAT}), {mib[COMMANDS]} ({COMMANDS})")
    figure(f"{rate:.0f} commands/s, publisher and broker on the same {os.cpu_count()} cores")
    assert sizes[COMMANDS] - sizes[FLAT] < (2 if LONG else 1) * 2**20
    assert grown < 8 * 2**20
    accepted = [("kate", f"n-{n}") for n in range(COMMANDS)]
    assert await checks.violations(stage, kate, accepted=accepted) == []
