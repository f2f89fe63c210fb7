"""File descriptors, memory and threads run out: the worker goes on, or ends with a line that says why (RELIABILITY 3, rows 30 to 32)."""

# ruff: noqa: ASYNC240  the files are those of the kernel, and answer at once

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e.stage import WORKER, Agent, Stage
from tests.eventually import eventually
from tests.faults.disturbing import at_work, ended, loaded
from tests.faults.report import Row
from tests.faults.verdict import verdict
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

Record = Callable[[Row], None]
CGROUPS = Path("/sys/fs/cgroup")


def cgroup(controller: str) -> Path:
    """Make a control group (version 1), or skip the test saying what it needs."""
    made = CGROUPS / controller / f"taskflow-{os.getpid()}"
    try:
        made.mkdir(exist_ok=True)
    except OSError as bad:
        pytest.skip(f"needs root and a writable cgroup v1 hierarchy at {CGROUPS / controller}: {bad.strerror}")
    if not (made / "cgroup.procs").exists():
        made.rmdir()
        pytest.skip(f"{CGROUPS / controller} is no cgroup v1 hierarchy; boot with systemd.unified_cgroup_hierarchy=0")
    return made


def removed(group: Path) -> None:
    """Take a control group away; what still runs in it goes to the root."""
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(OSError):
            (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()


@pytest.fixture
def memory() -> Iterator[Path]:
    group = cgroup("memory")
    yield group
    removed(group)


@pytest.fixture
def pids() -> Iterator[Path]:
    group = cgroup("pids")
    yield group
    removed(group)


@pytest.mark.scenario("file-descriptors")
async def test_without_file_descriptors_the_worker_goes_on_and_health_comes_back_with_them(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    rounds, back = tier(quick=1, all=2, nightly=10), []

    def healthy() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{stage.ready['http']}/readyz", timeout=2) as answer:  # noqa: S310  our own
            return bool(answer.status == 200)
        return False

    async def none_left() -> bool:
        """Take away the next one that the worker would get; looked at again, because one that it had open for a moment is free now."""
        taken = {int(fd.name) for fd in Path(f"/proc/{stage.pid}/fd").iterdir()}
        free = next(number for number in count() if number not in taken)
        resource.prlimit(stage.pid, resource.RLIMIT_NOFILE, (free, before[1]))
        return not await asyncio.to_thread(healthy)

    before = resource.prlimit(stage.pid, resource.RLIMIT_NOFILE)
    async with loaded(stage, dice, kate, rate=8) as load:
        for _ in range(rounds):
            await eventually(none_left)
            await at_work(kate, load.ledger)  # the engine needs none
            await stage.server.restart(kill=True)  # and the connection takes the place of the old one
            await at_work(kate, load.ledger)
            resource.prlimit(stage.pid, resource.RLIMIT_NOFILE, before)
            began = asyncio.get_running_loop().time()
            await eventually(lambda: asyncio.to_thread(healthy), within=20)
            back.append(asyncio.get_running_loop().time() - began)
    found = await verdict(stage, load, kate, at_least=20, clean_logs=False)
    assert sum(len(log.read_bytes().splitlines()) for log in stage.logs()) < 500
    record(found.row("file-descriptors", faults=rounds, back=back, note="none left, broker killed meanwhile; back: /readyz"))
    assert found.bad == []


@pytest.mark.scenario("out-of-memory")
async def test_a_worker_that_the_kernel_kills_for_its_memory_has_lost_nothing(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record, memory: Path
) -> None:
    kills, back = tier(quick=1, all=3, nightly=50), []
    limit = memory / "memory.limit_in_bytes"
    async with loaded(stage, dice, kate, rate=8) as load:
        for number in range(kills):
            limit.write_text("-1")
            (memory / "cgroup.procs").write_text(str(stage.pid))
            limit.write_text(str(1 << 20))  # what it touches from here on is charged, and there is no room for it
            flow_id = f"00000000-0000-4000-8000-{number:012}"
            operation = load.ledger.command(kate.name, f"big-{number}", flow_id, "start")
            body = {"controller_id": "k", "goal": "g", "flow_id": flow_id, "state": {"big": "x" * 200_000}}
            operation.tries += 1
            await kate.cmd("start", body, operation.id)
            operation.acknowledged = operation.invoked = asyncio.get_running_loop().time()
            assert await ended(stage, within=60) == -signal.SIGKILL
            began = asyncio.get_running_loop().time()
            await stage.start()
            back.append(asyncio.get_running_loop().time() - began)
    found = await verdict(stage, load, kate, at_least=20)
    assert not [letter for letter in await stage.dead(kate) if letter.subject.endswith(".poison")]
    record(found.row("out-of-memory", faults=kills, back=back, note="memory.limit_in_bytes 1 MiB on the running worker"))
    assert found.bad == []


@pytest.mark.full
@pytest.mark.scenario("address-space")
async def test_a_worker_without_memory_for_more_either_goes_on_or_ends_and_has_lost_nothing(
    stage: Stage, kate: Agent, dice: random.Random, tier: Tier, record: Record
) -> None:
    rounds, codes = tier(all=3, nightly=30), []
    async with loaded(stage, dice, kate, rate=8) as load:
        for number in range(rounds):
            before = resource.prlimit(stage.pid, resource.RLIMIT_AS)
            pages = int(Path(f"/proc/{stage.pid}/statm").read_text().split()[0])
            resource.prlimit(stage.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + number * 65536, before[1]))
            await asyncio.sleep(dice.uniform(0.5, 2))
            if stage.running:
                resource.prlimit(stage.pid, resource.RLIMIT_AS, before)
            working = asyncio.create_task(at_work(kate, load.ledger, within=60))
            while not working.done():  # it may also end when it has memory again: a service manager starts it
                if not stage.running:
                    codes.append(await ended(stage))
                    await stage.start()
                await asyncio.wait({working}, timeout=0.1)
            working.result()
            assert 0 not in codes
    found = await verdict(stage, load, kate, at_least=20, within=120, clean_logs=False)
    assert not [letter for letter in await stage.dead(kate) if letter.subject.endswith(".poison")]
    record(found.row("address-space", faults=rounds, note=f"RLIMIT_AS as large as in use for 0.5 to 2 s; ended with {codes or 'nothing'}"))
    assert found.bad == []


@pytest.mark.full
@pytest.mark.scenario("threads")
async def test_a_worker_that_may_start_no_thread_ends_with_one_line(stage: Stage, pids: Path, record: Record) -> None:
    assert await stage.stop() == 0
    enter = f'echo $$ > {pids}/cgroup.procs && exec "$@"'
    stage.program = ("sh", "-c", enter, "sh", *WORKER)
    found = []
    for most in range(1, 8):
        (pids / "pids.max").write_text(str(most))
        process, log = await stage.spawn()
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        if line:  # enough threads
            process.send_signal(signal.SIGTERM)
            await process.communicate()
            break
        assert await process.wait() == 74, log.read_text(encoding="utf-8")
        said = log.read_text(encoding="utf-8").splitlines()
        assert len(said) <= 2, said
        assert "thread" in said[-1]
        found.append(most)
    assert found
    record(Row(scenario="threads", seed=SEED, runs=len(found), faults=len(found), note=f"pids.max {found}: exit 74, one line"))
