"""Run what the README tells a newcomer to run: its Python snippet, word for word, against a worker."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.stage import Stage

README = Path(__file__).parents[2] / "README.md"


def test_the_python_snippet_is_valid_and_names_the_address_of_make_run() -> None:
    snippet = _snippet()
    compile(snippet, "README.md", "exec")
    assert '"nats://127.0.0.1:4222"' in snippet


def _snippet() -> str:
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.e2e
async def test_the_python_snippet_parks_resumes_and_finishes_a_flow(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        script = tmp_path / "first.py"
        script.write_text(_snippet().replace("nats://127.0.0.1:4222", stage.url), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        told, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, told.decode()
    assert told.decode().splitlines() == [
        "created",
        "started",
        "waiting",
        "resumed with {'answer': 42}",
        f"finished {told.decode().splitlines()[-1].partition(' ')[2]}",
    ]
