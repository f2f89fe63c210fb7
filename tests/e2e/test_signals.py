"""Signals count from the first moment, also as process 1 and while the broker is looked for; all of them stop gracefully (CONTRACT 7)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.stage import WORKER, Agent, Stage
from tests.eventually import eventually

pytestmark = pytest.mark.e2e

ALL = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
CONTAINERFILE = Path(__file__).parents[2] / "deploy" / "container" / "Containerfile"
SENDS = """
import os, signal, sys
import nats_taskflow.__main__

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})

sys.argv = ["taskflow", "run"]
sys.meta_path.insert(0, Sender())
nats_taskflow.__main__.main()
"""
"""A worker that gets a signal at the moment at which it begins to load a module."""


class Silence:
    """A server that accepts connections and says nothing."""

    def __init__(self) -> None:
        self.tried = asyncio.Event()
        self.url = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Accept a connection, and wait for its end."""
        self.tried.set()
        await reader.read()
        writer.close()


@pytest.fixture
async def silence() -> AsyncIterator[Silence]:
    """A broker that is looked for in vain."""
    made = Silence()
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


async def started(folder: Path, url: str, *program: str) -> asyncio.subprocess.Process:
    """Start a worker that would look for its broker for ten minutes."""
    stage = Stage(folder, settings={"TASKFLOW_NATS_CONNECT_TIMEOUT": "10m", "TASKFLOW_NATS_URL": url})
    environment = stage.environment() if url else os.environ
    log = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*program, stdout=log, stderr=log, env=environment, cwd=folder)


async def end(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return how a process ends, and its log."""
    try:
        async with asyncio.timeout(30):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, log.decode()


@pytest.mark.parametrize("number", ALL)
async def test_it_stops_while_it_looks_for_the_broker(number: signal.Signals, tmp_path: Path, silence: Silence) -> None:
    process = await started(tmp_path, silence.url, *WORKER)
    await asyncio.wait_for(silence.tried.wait(), 40)
    process.send_signal(number)
    code, log = await end(process)
    assert code == 0, log
    assert "worker.stopped" in log
    assert not (tmp_path / "flows.db-wal").exists()


@pytest.mark.parametrize("module", ["nats_taskflow.cli", "nats_taskflow.config", "nats_taskflow.app", "nats"])
@pytest.mark.parametrize("number", ALL)
async def test_a_signal_that_comes_while_it_loads_is_answered(
    number: signal.Signals, module: str, tmp_path: Path, silence: Silence
) -> None:
    process = await started(tmp_path, silence.url, sys.executable, "-c", SENDS.format(module=module, number=number.name))
    code, log = await end(process)
    assert code == 0, log
    assert "worker.stopped" in log


@pytest.mark.parametrize("command", ["run", "dev"])
async def test_a_signal_from_before_the_program_began_is_answered(command: str, tmp_path: Path, silence: Silence) -> None:
    held = ("env", "--block-signal=TERM", "sh", "-c", f'kill -TERM $$; exec "{sys.executable}" -m nats_taskflow {command}')
    code, log = await end(await started(tmp_path, silence.url, *held))
    assert code == 0, log
    assert "worker.stopped" in log


async def test_other_commands_end_at_once_by_a_signal_that_was_held_back(tmp_path: Path, silence: Silence) -> None:
    held = ("env", "--block-signal=TERM", "sh", "-c", f'kill -TERM $$; exec "{sys.executable}" -m nats_taskflow waits')
    code, log = await end(await started(tmp_path, silence.url, *held))
    assert code == -signal.SIGTERM, log


@pytest.mark.parametrize("numbers", [(signal.SIGHUP,), (signal.SIGHUP, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM)])
async def test_a_terminal_that_closes_stops_it_gracefully(numbers: Sequence[signal.Signals], stage: Stage, kate: Agent) -> None:
    await kate.start()
    for number in numbers:
        stage.process.send_signal(number)
    assert await stage.over() == 0
    assert not stage.path.with_name("flows.db-wal").exists()


async def test_it_outlives_its_terminal_where_nohup_started_it(tmp_path: Path) -> None:
    async with Stage(tmp_path, program=("nohup", *WORKER)) as stage:
        stage.process.send_signal(signal.SIGHUP)
        kate = await stage.agent()
        assert await kate.start()
        assert await stage.stop() == 0


def may_unshare() -> bool:
    """Tell whether a process may have a PID namespace of its own here."""
    return subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode == 0


def first_child(pid: int) -> int:
    """Return the child of a process once it is Python; 0 before."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    if not children or b"python" not in Path(f"/proc/{children[0]}/cmdline").read_bytes().split(b"\0")[0]:
        return 0
    return int(children[0])


@pytest.mark.skipif(not may_unshare(), reason="no PID namespace may be made here")
async def test_as_process_1_it_answers_a_signal_of_the_first_moment(tmp_path: Path, silence: Silence) -> None:
    line = next(line for line in CONTAINERFILE.read_text(encoding="utf-8").splitlines() if line.startswith("ENTRYPOINT "))
    entry = [word for word in json.loads(line.removeprefix("ENTRYPOINT ")) if word != "taskflow"]
    process = await started(tmp_path, silence.url, "unshare", "--pid", "--fork", "--kill-child", *entry, *WORKER)
    pid = await eventually(lambda: first_child(process.pid))
    os.kill(pid, signal.SIGTERM)
    code, log = await end(process)
    assert code == 0, log
    assert "worker.stopped" in log
