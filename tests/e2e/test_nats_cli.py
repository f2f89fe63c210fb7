"""Type every `nats …` line of the README and the examples, with the real `nats` command line where there is one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.shell import Shell
from tests.e2e.stage import Stage
from tests.e2e.test_docs_commands import path_with_programs
from tests.eventually import eventually
from tests.pages import ROOT, blocks

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("nats") is None, reason="the nats command line is not on the PATH (it is a Go program)"),
]
_OBJECT = re.compile(r'^\{"(?:ok|specversion)":.*\}$', re.MULTILINE)


@pytest.fixture
async def shell(stage: Stage, tmp_path: Path) -> AsyncIterator[Shell]:
    """A shell that finds the worker as a newcomer's does."""
    folder = tmp_path / "typed"
    folder.mkdir()
    environment = stage.environment() | {"PATH": path_with_programs(), "NATS_URL": stage.url, "HOME": str(folder)}
    async with Shell(folder, environment) as opened:
        yield opened


async def test_the_readme_parks_and_resumes_and_delegates_as_printed(shell: Shell) -> None:
    said = ""
    for block in [one for one in blocks("README.md") if one.language == "sh" and re.search("^nats ", one.text, re.MULTILINE)]:
        beside = block.mark == "terminal"  # it goes on, in a terminal of its own
        typed = f"{{ {block.text}}} >> beside.txt 2>&1 &" if beside else f"set -e\n{block.text}\nset +e"
        printed, code = await shell.run(typed)
        assert code == 0, printed
        said += printed
    heard = [json.loads(found) for found in _OBJECT.findall(said)]
    assert all(answer["ok"] for answer in heard if "ok" in answer), said
    resumed = [event["data"]["payload"]["patch"]["resume_event"] for event in heard if event.get("type") == "taskflow.flow.resumed.v1"]
    assert list({json.dumps(event): event for event in resumed}.values()) == [{"answer": 42}, {"sum": 3}], said

    async def watched() -> bool:
        return ".finished" in (await shell.run("cat beside.txt"))[0]

    await eventually(watched, within=30)


async def test_the_agent_in_shell_prints_what_it_says(shell: Shell) -> None:
    said, code = await shell.run(f"FLOW={uuid4()} bash '{ROOT}/examples/raw_messages/raw.sh'")
    assert code == 0, said
    assert '"resume_event":{"sum":3}' in said
    assert '"code":"already_terminal"' in said


async def test_the_page_on_waiting_parks_a_flow_as_printed(shell: Shell, stage: Stage) -> None:
    (shown,) = [block.text for block in blocks("docs/waiting.md") if block.language == "sh" and "nats req" in block.text]
    flow = await (await stage.agent("kate")).start()
    condition = json.dumps({"flow_id": flow, "wait_condition": {"kind": "manual"}})
    said, code = await shell.run(f"set -e\n{shown.replace('the JSON', condition)}\nset +e")
    assert code == 0, said
    assert '"status":"waiting"' in said
