"""What a worker loads before it is ready: starting is what a restart after a crash waits for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.e2e.stage import Stage

pytestmark = pytest.mark.e2e

UNUSED = ("jsonschema", "referencing", "attr", "rich.console", "rich.traceback", "pygments", "uvicorn", "h11", "multiprocessing")
UNUSED_OF_OURS = ("worker.cli.asking", "worker.cli.demo_story", "worker.invariants", "worker.bus.server", "worker.store.offline")


async def test_a_worker_without_http_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    program = (sys.executable, "-X", "importtime", "-m", "worker", "run")
    async with Stage(tmp_path, program=program, settings={"TASKFLOW_HTTP_BIND": "off"}) as stage:
        assert stage.ready["http"] == "off"
        loaded = set(re.findall(r"^import time: .*\| +(\S+)$", stage.logs()[0].read_text(), re.MULTILINE))
    assert {"nats", "structlog", "worker.app"} <= loaded, "the list of modules was not read"
    assert not loaded & {*UNUSED, *UNUSED_OF_OURS}
