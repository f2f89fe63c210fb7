"""Run what the README tells a newcomer to run: its Python programs, word for word, with a worker, without one, and without a server."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.config import Config
from tests.e2e.stage import Stage
from tests.pages import blocks
from tests.ports import kept_port

README = Path(__file__).parents[2] / "README.md"


SNIPPETS: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
PROGRAMS = [block.text for page in ("README.md", "docs/tutorial.md") for block in blocks(page) if "asyncio.run(" in block.text]
NAMES = ["readme", "client", "tutorial"]


def test_the_programs_find_the_server_of_make_run() -> None:
    assert [block in PROGRAMS for block in SNIPPETS] == [True, True]
    (default,) = Config().nats.url
    assert f'os.environ.get("NATS_URL", "{default}")' in SNIPPETS[0]
    assert 'FlowClient.connect(agent="kate"' in SNIPPETS[1], "takes NATS_URL, or the default"


async def run(program: str, folder: Path, url: str) -> tuple[int | None, str, str]:
    """Run a program; returns its exit code, what it prints, and what it says on stderr."""
    script = folder / "first.py"
    script.write_text(program, encoding="utf-8")
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "NATS_URL": url}
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), cwd=folder, env=environment, stdout=pipe, stderr=pipe)
    printed, said = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, printed.decode(), said.decode()


async def told(snippet: str, folder: Path) -> list[str]:
    """Run a snippet against a worker, and return the lines it prints."""
    async with Stage(folder) as stage:
        code, printed, said = await run(snippet, folder, stage.url)
    assert (code, said) == (0, "")
    return printed.splitlines()


@pytest.mark.e2e
async def test_the_raw_snippet_parks_resumes_and_finishes_a_flow(tmp_path: Path) -> None:
    *steps, last = await told(SNIPPETS[0], tmp_path)
    assert steps == ["created", "started", "waiting", "resumed with {'answer': 42}"]
    assert last.startswith("finished ")


@pytest.mark.e2e
async def test_the_agent_in_ten_lines_does_the_same(tmp_path: Path) -> None:
    assert await told(SNIPPETS[1], tmp_path) == ["resumed with {'answer': 43}"]


@pytest.mark.e2e
@pytest.mark.parametrize("program", PROGRAMS, ids=NAMES)
async def test_a_program_without_a_server_ends_with_one_sentence(program: str, tmp_path: Path) -> None:
    code, printed, said = await run(program, tmp_path, f"nats://127.0.0.1:{kept_port()}")
    assert (code, printed) == (1, "")
    (sentence,) = said.splitlines()
    assert "run?" in sentence


@pytest.mark.e2e
@pytest.mark.parametrize("program", PROGRAMS, ids=NAMES)
async def test_a_program_without_a_worker_ends_with_one_sentence(program: str, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "nats", kept_port(), sync_always=False)
    await server.start()
    try:
        code, printed, said = await run(program, tmp_path, server.url)
    finally:
        await server.stop()
    assert (code, printed) == (1, "")
    (sentence,) = said.splitlines()
    assert "run?" in sentence
