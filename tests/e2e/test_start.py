"""What is loaded at a start: a restart after a crash waits for it, and so does a person who asks a question."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.stage import Stage

pytestmark = pytest.mark.e2e

UNUSED = ("jsonschema", "referencing", "attr", "rich.console", "rich.traceback", "pygments", "uvicorn", "h11", "multiprocessing")
UNUSED_OF_OURS = (
    "nats_taskflow.cli.session",
    "nats_taskflow.cli.demo.story",
    "nats_taskflow.store.invariants",
    "nats_taskflow.bus.nats.server",
    "nats_taskflow.store.sqlite.offline",
)


async def test_a_worker_without_http_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    program = (sys.executable, "-X", "importtime", "-m", "nats_taskflow", "run")
    async with Stage(tmp_path, program=program, settings={"TASKFLOW_HTTP_BIND": "off"}) as stage:
        assert stage.ready["http"] == "off"
        loaded = set(re.findall(r"^import time: .*\| +(\S+)$", stage.logs()[0].read_text(), re.MULTILINE))
    assert {"nats", "structlog", "nats_taskflow.app"} <= loaded, "the list of modules was not read"
    assert not loaded & {*UNUSED, *UNUSED_OF_OURS}


UNUSED_TO_ASK = {"structlog", "nats.js.api", "nats.js.client", "rich", "uvloop", "nkeys", "nacl", "sqlite3"}
OURS_UNUSED_TO_ASK = {"nats_taskflow.observe.log", "nats_taskflow.bus.nats.monitor", "nats_taskflow.app", "nats_taskflow.engine.engine"}
ASK = "import sys; sys.argv = ['taskflow', *sys.argv[1:]]\nfrom nats_taskflow.cli import main\ntry: main()\nfinally: print(*sys.modules)"


@pytest.mark.parametrize("question", ["waits", "flow list", "stats", "top --count 1", "check", "events"])
async def test_a_question_is_answered_without_loading_what_it_does_not_use(tmp_path: Path, question: str) -> None:
    """As a set of modules, since times differ from machine to machine: each of these was 3 to 30 ms of every start."""
    async with Stage(tmp_path) as stage:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ASK, *question.split()), stdout=asyncio.subprocess.PIPE, env=stage.environment(), cwd=tmp_path
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    loaded = set(said.decode().splitlines()[-1].split())
    assert "nats.aio.client" in loaded
    reads_a_stream = {"nats.js.api", "nats.js.client"} if question == "events" else set()
    assert not loaded & (UNUSED_TO_ASK | OURS_UNUSED_TO_ASK) - reads_a_stream
