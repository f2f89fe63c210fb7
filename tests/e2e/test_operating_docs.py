"""The how-to of the person on call is true: every command of docs/operating.md is run, in its order, against a worker."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.e2e.commands import asked, command
from tests.e2e.stage import TOPIC, Agent, Stage
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


@pytest.mark.page
async def test_every_command_of_the_page_does_what_it_says(stage: Stage, kate: Agent) -> None:
    flow = await kate.parked("corr-42", timeout="1h")
    await kate.reply(TOPIC, "corr-24", {"answer": 1})
    held = await eventually(lambda: _held(stage), within=20)
    names = {"FLOW": flow[-8:], "NUMBER": str(held), "LETTER": "1"}
    said = {}
    for line in COMMANDS:
        if "dlq list" in line and line not in said and "letters" not in line:
            await kate.publish("taskflow.cmd.kate.start", b"{nonsense")
            await stage.dead(kate, 1)
        words = [names.get(word, word) for word in shlex.split(line)]
        assert words.pop(0) == "taskflow", line
        if words[:3] == ["flow", "resume", names["FLOW"]]:
            flow_id = await kate.parked("corr-44")
            names["FLOW"] = words[2] = flow_id
        if words[:2] == ["flow", "wait"]:
            await kate.until(flow, "running")
        if words[:2] == ["dlq", "purge"]:
            await eventually(lambda: _published(stage), within=30)
        said[line] = (await command(stage, *words)).out
    assert "corr-24" in said["taskflow why FLOW"]
    assert "✓ worker" in said["taskflow doctor"]
    assert "⟨corr-42⟩" in said["taskflow waits"]
    assert "⟨corr-42⟩" in said["taskflow waits --due-within 2h"]
    assert said["taskflow waits --kind manual"] == ""
    assert "replayed" in said['taskflow dlq replay LETTER --reason "sender fixed"']
    assert (await asked(stage, "flow", "show", names["FLOW"])).json["status"] == "cancelled"


async def _held(stage: Stage) -> int:
    items = (await asked(stage, "held", "list")).items
    return int(items[0]["number"]) if items else 0


async def _published(stage: Stage) -> bool:
    return not (await asked(stage, "stats")).json["unpublished"]["dead_letters"]


def test_the_page_has_the_commands_that_the_person_on_call_needs() -> None:
    for needed in ("taskflow why FLOW", "taskflow who agent.delegate.reply corr-42", "taskflow dlq list", "taskflow doctor"):
        assert needed in COMMANDS
