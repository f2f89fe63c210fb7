"""What `docs/client.md` shows is run: whole programs (`run`, `serve`) as processes, the other blocks as the body of one (`with flow`)."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.commands import ended_quietly
from tests.e2e.stage import Stage

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^<!-- (?P<mark>[^>]+) -->\n```(?:python|text)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```\w+\n", re.MULTILINE)
_PATIENCE = 60.0
BLOCKS = [(found["mark"], found["text"]) for found in _BLOCK.finditer(PAGE)]
BODY = """
import asyncio
from nats_taskflow import FlowClient


async def main():
    async with FlowClient.connect(agent="kate") as flows:
        flow = await flows.start(controller_id="kate/docs", goal="show how the client works")
{body}

asyncio.run(main())
"""


def program(folder: Path, text: str) -> tuple[str, str]:
    """Write a program down; returns the command."""
    path = folder / f"program_{len(list(folder.glob('program_*')))}.py"
    path.write_text(text, encoding="utf-8")
    return sys.executable, str(path)


def environment(stage: Stage) -> dict[str, str]:
    """The environment of a reader who follows the page."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    return {**clean, "NATS_URL": stage.url, "PYTHONPATH": str(ROOT)}


async def run(stage: Stage, folder: Path, text: str) -> str:
    """Run a program to its end, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *program(folder, text), env=environment(stage), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        printed, said = await asyncio.wait_for(process.communicate(), _PATIENCE)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, f"{text}\n{said.decode()}"
    return printed.decode()


@asynccontextmanager
async def served(stage: Stage, folder: Path, text: str) -> AsyncIterator[None]:
    """Run a program beside the others, and end it with Ctrl-C, as a reader does."""
    process = await asyncio.create_subprocess_exec(
        *program(folder, text), env=environment(stage), cwd=folder, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield
    finally:
        assert process.returncode is None, f"it ended by itself:\n{text}"
        await ended_quietly(process)


@pytest.mark.page
@pytest.mark.timeout(300)
async def test_what_the_page_on_the_client_shows_works(stage: Stage, tmp_path: Path) -> None:
    async with AsyncExitStack() as beside:
        for at, (mark, text) in enumerate(BLOCKS):
            if mark == "serve":
                await beside.enter_async_context(served(stage, tmp_path, text))
            elif mark == "with flow":
                await run(stage, tmp_path, BODY.format(body=textwrap.indent(text, " " * 8)))
            elif mark == "run":
                printed = await run(stage, tmp_path, text)
                assert BLOCKS[at + 1] == ("prints", printed)


def test_every_block_of_the_page_on_the_client_is_marked_and_so_tested() -> None:
    assert len(BLOCKS) == len(_FENCE.findall(PAGE))
    assert {mark for mark, _ in BLOCKS} == {"run", "prints", "serve", "with flow"}
