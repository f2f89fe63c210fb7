"""What `examples/README.md` shows is run as it stands there, against a real `taskflow dev`, and prints what it says."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from tests.e2e import checks
from tests.e2e.commands import command, ended_quietly
from tests.e2e.stage import Stage, World

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
DEV = (sys.executable, "-m", "nats_taskflow", "dev")
NEXO = {"TASKFLOW_CONFIG": str(ROOT / "examples" / "nexo-taskflow.toml"), "TASKFLOW_REPLY_TOPICS": ""}
_SHOWN = re.compile(r"^```sh\n(?P<command>[^\n]+)\n```\n\n```text\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_PATIENCE = 100.0


class Example(NamedTuple):
    """A command, and what it prints."""

    command: str
    output: str

    @property
    def name(self) -> str:
        """The program."""
        return self.command.rpartition("/")[2]


SHOWN = {example.name: example for example in (Example(found["command"], found["output"]) for found in _SHOWN.finditer(PAGE))}
PYTHON = sorted(name for name in SHOWN if name.endswith(".py"))


async def said(stage: Stage, *command: str, **more: str) -> str:
    """Run a program of the page to its end, from where the page says; returns what it printed, with names for what differs each time."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(stage, more), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        printed, complained = await asyncio.wait_for(process.communicate(), _PATIENCE)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, f"{shlex.join(command)}: {process.returncode}\n{printed.decode()}\n{complained.decode()}"
    assert "Traceback" not in complained.decode(), complained.decode()
    return _TIME.sub("TIME", _UUID.sub("FLOW", printed.decode()))


def environment(stage: World, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a reader who follows the page; nothing of the tester's own settings comes through."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    nothing = stage.folder / "nothing.toml"
    nothing.touch()
    return {**clean, "NATS_URL": stage.url, "PYTHONPATH": str(ROOT), "TASKFLOW_CONFIG": str(nothing), **more}


async def loads(package: str, folder: Path) -> bool:
    """Tell whether Node finds the package from there, and can load it."""
    none = asyncio.subprocess.DEVNULL
    command = ("node", "--input-type=module", "-e", f"await import('{package}')")
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=none, stderr=none)
    return await asyncio.wait_for(process.wait(), _PATIENCE) == 0


async def sound(stage: Stage, *, ignored: int = 0) -> None:
    """Find every promise kept; the worker is stopped for it. `ignored`: how many messages were none for it."""
    kate = await stage.agent("kate")
    # What `taskflow dev` says to a person is no line of JSON, so the logs are not looked at.
    assert await checks.violations(stage, kate, ignored=ignored, clean_logs=False) == []


@pytest.mark.page
@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PYTHON)
async def test_the_example_prints_what_the_page_shows_also_the_second_time(name: str, tmp_path: Path) -> None:
    python, program = shlex.split(SHOWN[name].command)
    assert python == ".venv/bin/python"
    nexo = name == "replay.py"
    async with Stage(tmp_path, settings=NEXO if nexo else None, program=DEV) as stage:
        assert await said(stage, sys.executable, program) == SHOWN[name].output
        assert await said(stage, sys.executable, program) == SHOWN[name].output
        await sound(stage, ignored=2 if nexo else 0)  # bob's word on how far he is, in each run


@asynccontextmanager
async def living(world: World, program: str, *, interrupted: bool = False) -> AsyncIterator[asyncio.StreamReader]:
    """Run a program that does not end by itself, and kill it at the end, or press Ctrl-C; gives what it prints."""
    _, *arguments = shlex.split(program)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment(world, {}), cwd=ROOT, stdout=pipe, stderr=pipe
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            yield process.stdout
        if interrupted:
            await ended_quietly(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.page
@pytest.mark.e2e
async def test_the_approval_of_a_month_says_how_to_answer_and_goes_on_after_a_kill(world: World) -> None:
    text = (ROOT / "examples" / "month_long_approval" / "approval.py").read_text(encoding="utf-8")
    asks, goes_on = re.findall(r"^    \.venv/bin/python (.+)$", text, re.MULTILINE)
    async with living(world, f"python {asks}") as printed:
        said = (await printed.readuntil(b"Ctrl-C")).decode()
    answer = next(line for line in said.splitlines() if "taskflow flow resume" in line)
    async with living(world, f"python {goes_on}", interrupted=True) as printed:
        await printed.readuntil(b"Ctrl-C")
        await command(world, *shlex.split(answer)[1:])
        await printed.readuntil(b"two new servers: approved by Ann")


@pytest.mark.page
@pytest.mark.e2e
async def test_the_raw_messages_are_answered_as_the_page_shows(tmp_path: Path) -> None:
    """The script runs in bash as it is; only `nats` is `tests.e2e.nats_cli`."""
    nats = tmp_path / "bin" / "nats"
    nats.parent.mkdir()
    nats.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.e2e.nats_cli "$@"\n', encoding="utf-8")
    nats.chmod(0o755)
    async with Stage(tmp_path, program=DEV) as stage:
        program = shlex.split(SHOWN["raw.sh"].command)
        path = f"{nats.parent}:{os.environ['PATH']}"
        assert await said(stage, *program, PATH=path, FLOW=str(uuid4())) == SHOWN["raw.sh"].output
        await sound(stage)


@pytest.mark.page
@pytest.mark.e2e
async def test_the_agent_in_javascript_prints_what_the_page_shows(tmp_path: Path) -> None:
    install, _, program = SHOWN["agent.mjs"].command.partition(" && ")
    if shutil.which("node") is None:
        pytest.skip("there is no node on PATH: install Node 20.19 or newer")
    if not await loads("@nats-io/transport-node", ROOT / "examples" / "raw_messages"):
        pytest.skip(f"the NATS client for Node is not there: {install}")
    async with Stage(tmp_path, program=DEV) as stage:
        assert await said(stage, *shlex.split(program)) == SHOWN["agent.mjs"].output
        await sound(stage)


def test_every_program_of_the_examples_is_shown_and_so_run() -> None:
    assert set(SHOWN) == {"approve.py", "quotes.py", "ask.py", "demo.py", "raw.sh", "agent.mjs", "replay.py"}
    assert len(SHOWN) == PAGE.count("\n```text\n")


def test_the_micro_service_knows_nothing_of_flows() -> None:
    code = (ROOT / "examples" / "micro_service" / "service.py").read_text(encoding="utf-8").partition('"""\n')[2]
    assert not re.search(r"worker|flow|correlation", code, re.IGNORECASE)


def test_the_raw_messages_need_no_client_but_nats() -> None:
    script = (ROOT / "examples" / "raw_messages" / "raw.sh").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:\w+=\S* )*([a-z]\w*) ", script, re.MULTILINE)) == {"set", "echo", "nats"}
