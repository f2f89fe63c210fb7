"""Run what the README tells a newcomer to run: its Python snippet, word for word, against a worker."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.stage import Stage
from tests.pages import blocks
from tests.ports import kept_port

README = Path(__file__).parents[2] / "README.md"


SNIPPETS: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_snippets_name_the_address_of_make_run() -> None:
    assert len(SNIPPETS) == 2
    assert all('"nats://127.0.0.1:4222"' in snippet for snippet in SNIPPETS)


async def told(snippet: str, folder: Path) -> list[str]:
    """Run a snippet against a worker, and return the lines it prints."""
    async with Stage(folder) as stage:
        script = folder / "first.py"
        script.write_text(snippet.replace("nats://127.0.0.1:4222", stage.url), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, said.decode()
    return said.decode().splitlines()


@pytest.mark.e2e
async def test_the_raw_snippet_parks_resumes_and_finishes_a_flow(tmp_path: Path) -> None:
    *steps, last = await told(SNIPPETS[0], tmp_path)
    assert steps == ["created", "started", "waiting", "resumed with {'answer': 42}"]
    assert last.startswith("finished ")


@pytest.mark.e2e
async def test_the_agent_in_ten_lines_does_the_same(tmp_path: Path) -> None:
    assert await told(SNIPPETS[1], tmp_path) == ["resumed with {'answer': 43}"]


RAW = [block.text for page in ("README.md", "docs/tutorial.md") for block in blocks(page) if "nats.connect(" in block.text]


@pytest.mark.e2e
@pytest.mark.parametrize("snippet", RAW, ids=["readme", "tutorial"])
async def test_a_program_without_a_server_ends_with_one_sentence(snippet: str, tmp_path: Path) -> None:
    nowhere = f"nats://127.0.0.1:{kept_port()}"
    program = tmp_path / "first.py"
    program.write_text(snippet.replace("nats://127.0.0.1:4222", nowhere), encoding="utf-8")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), env={**os.environ, "NATS_URL": nowhere}, stdout=pipe, stderr=pipe
    )
    printed, said = await asyncio.wait_for(process.communicate(), 30)
    assert (printed, process.returncode) == (b"", 1)
    (sentence,) = said.decode().splitlines()
    assert "run?" in sentence
