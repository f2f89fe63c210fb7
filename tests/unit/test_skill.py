"""What agents are given to read: the skill, how it is installed, llms.txt, and that the wheel has both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner, Result

from nats_taskflow.cli import taskflow
from nats_taskflow.cli.skill import NAME, skill_text
from nats_taskflow.client.mcp.calls import check_call
from nats_taskflow.client.mcp.schema import ACTIONS
from nats_taskflow.flow.conditions import from_value

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[[^\]]+\]\(([^)]+)\)")
_ROW = re.compile(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(taskflow, ["skill", *arguments], prog_name="taskflow")


def test_print_gives_the_skill_as_it_is() -> None:
    assert invoke("print").stdout == skill_text()


def test_the_frontmatter_is_what_agents_look_for() -> None:
    _, front, body = skill_text().split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields["name"] == NAME, "it has to be the folder's name"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fields["name"])
    assert 50 < len(fields["description"]) <= 1024
    assert "Use when" in fields["description"]
    assert len(body.splitlines()) < 500


def test_the_skill_tells_the_actions_as_the_tool_has_them() -> None:
    told = {name: (set(re.findall(r"`(\w+)`", must)), set(re.findall(r"`(\w+)`", may))) for name, must, may in _ROW.findall(skill_text())}
    assert told == {name: (set(action.needs), set(action.takes)) for name, action in ACTIONS.items()}


def test_the_examples_in_the_skill_are_calls_that_the_tool_takes() -> None:
    calls = [json.loads(found) for found in re.findall(r"`(\{\"action\".*?\})` ?(?:→|$)", skill_text(), re.MULTILINE)]
    assert [call["action"] for call in calls] == ["start", "delegate", "status", "finish"]
    for call in calls:
        check_call(call.pop("action"), call, keys=False)


def test_the_conditions_in_the_skill_are_conditions() -> None:
    soon = datetime.now(UTC).isoformat()
    blocks = re.findall(r"```json\n(.*?)```", skill_text(), re.DOTALL)
    conditions = [json.loads(block) for block in blocks]
    assert [condition["kind"] for condition in conditions] == ["external_event", "timer", "timer", "manual", "any_of"]
    for condition in conditions:
        if "at" in condition:
            condition["at"] = soon
        assert from_value(condition) is not None, condition


def test_install_writes_it_where_claude_code_looks_and_twice_is_once(folder: Path) -> None:
    first = invoke("install")
    assert first.exit_code == 0
    assert first.stdout == ".claude/skills/nats-taskflow/SKILL.md\n"
    assert (folder / ".claude/skills/nats-taskflow/SKILL.md").read_text(encoding="utf-8") == skill_text()
    again = invoke("install")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "up to date" in again.stderr


def test_install_goes_into_the_folder_that_is_named(folder: Path) -> None:
    assert invoke("install", "--folder", "~/.agents/skills").exit_code == 0
    assert (folder / "home/.agents/skills/nats-taskflow/SKILL.md").read_text(encoding="utf-8") == skill_text()


def test_install_leaves_an_edited_skill_alone_unless_forced(folder: Path) -> None:
    place = folder / "s/nats-taskflow/SKILL.md"
    place.parent.mkdir(parents=True)
    place.write_text("mine", encoding="utf-8")
    refused = invoke("install", "--folder", "s")
    assert refused.exit_code == 4
    assert "--force" in refused.stderr
    assert place.read_text(encoding="utf-8") == "mine"
    assert invoke("install", "--folder", "s", "--force").exit_code == 0
    assert place.read_text(encoding="utf-8") == skill_text()


def test_install_says_in_one_line_that_it_cannot_write(folder: Path) -> None:
    (folder / "s").mkdir()
    (folder / "s/nats-taskflow").write_text("a file", encoding="utf-8")
    refused = invoke("install", "--folder", "s")
    assert refused.exit_code == 74
    assert len(refused.stderr.splitlines()) == 1
    assert "cannot be written" in refused.stderr


def test_llms_txt_has_the_form_that_llmstxt_org_asks_for() -> None:
    lines = (ROOT / "llms.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# nats-taskflow"
    assert lines[2].startswith("> ")
    assert [line for line in lines if line.startswith("#")][-1] == "## Optional"
    listed = [line for line in lines if line.startswith("- ")]
    assert listed
    assert all(re.fullmatch(r"- \[[^\]]+\]\([^)]+\): .+", line) for line in listed)


def test_the_links_of_llms_txt_lead_somewhere_and_every_page_is_in_it() -> None:
    links = _LINK.findall((ROOT / "llms.txt").read_text(encoding="utf-8"))
    assert all((ROOT / link).is_file() for link in links)
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - {"docs/README.md"}
    assert pages - set(links) == set()


@pytest.mark.slow
def test_the_wheel_has_the_skill_and_llms_txt_with_what_it_links_to(tmp_path: Path) -> None:
    building = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    subprocess.run(building, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        llms = opened.read("nats_taskflow/pages/llms.txt").decode()
        assert opened.read(f"nats_taskflow/.agents/skills/{NAME}/SKILL.md").decode() == skill_text()
    assert {str(PurePosixPath("nats_taskflow/pages") / link) for link in _LINK.findall(llms)} <= names
    assert [name for name in names if "/docs/generate/" in name] == [], "what writes the pages is of no use to who installs them"


def test_the_image_is_built_with_everything_that_the_wheel_takes() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    container = ROOT / "deploy" / "container"
    lines = (container / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]}
    for source in {*wheel["only-include"], *wheel["force-include"]}:
        assert copied & {source, *map(str, PurePosixPath(source).parents)}, source
    for ignore in ("Containerfile.containerignore", "Containerfile.dockerignore"):
        seen = {line.removeprefix("!") for line in (container / ignore).read_text(encoding="utf-8").splitlines() if line.startswith("!")}
        assert copied - seen == set(), f"{ignore} hides what the Containerfile copies"
