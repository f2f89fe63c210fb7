"""What the pages have people copy can be pasted into the shell that they have: bash, and zsh as macOS has it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.shell import typed
from tests.pages import ROOT, blocks, pages

SKILL = "worker/nats_taskflow/.agents/skills/nats-taskflow/SKILL.md"
_QUOTED = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)#", re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    """Give whatever people copy into a shell, each with its place."""
    for block in (found for page in [*pages(), SKILL] for found in blocks(page)):
        if block.language == "sh":
            yield f"{block.page}:{block.line}", block.text
        elif block.language == "console":
            yield from ((f"{block.page}:{block.line}", command) for command, _ in typed(block.text))


def unfit(text: str) -> bool:
    """Tell whether zsh, which at a prompt knows no comments, does something else than is meant."""
    bare = _QUOTED.sub("_", text)
    return "`" in bare or _COMMENT.search(bare) is not None


@pytest.mark.parametrize("text", ["make run  # a worker", "# first\nmake run", "echo `date`"])
def test_a_comment_or_a_backtick_among_commands_is_found(text: str) -> None:
    assert unfit(text)


def test_what_is_quoted_is_no_comment() -> None:
    assert not unfit("python3 -c 'x = 1  # one'\necho $#")


def test_no_command_to_copy_has_a_comment_or_a_backtick() -> None:
    found = list(commands())
    assert {"README.md", "CONTRIBUTING.md", "docs", "examples", "bench", "deploy", "worker"} == {
        place.split(":")[0].split("/")[0] for place, _ in found
    }
    assert [place for place, text in found if unfit(text)] == []


def test_a_server_that_the_pages_start_listens_to_this_machine_alone() -> None:
    started = [line for _, text in commands() for line in text.splitlines() if "nats-server --jetstream" in line]
    assert started
    assert [line for line in started if "--addr 127.0.0.1 " not in line] == []


def test_what_the_pages_have_people_make_in_the_clone_is_ignored_by_git() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    saved = re.findall(r"Save it as `([\w.]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    folders = [found for _, text in commands() for found in re.findall(r"^mkdir -p (\w+) && cd \1$", text, re.MULTILINE)]
    assert len(saved) == 2, "each program of the README says how to run it"
    assert folders == ["tutorial"]
    assert [name for name in saved if f"/{name}" not in ignored] == []
    assert [name for name in folders if f"/{name}/" not in ignored] == []


def test_no_program_to_copy_answers_ctrl_c_with_a_traceback() -> None:
    shown = [(f"{one.page}:{one.line}", one.text) for page in pages() for one in blocks(page) if one.language == "python"]
    kept = [(path.name, path.read_text(encoding="utf-8")) for path in (ROOT / "examples").rglob("*.py") if ".venv" not in path.parts]
    endless = re.compile(r"asyncio\.Event\(\)\.wait\(\)|(?:asyncio\.run\(|await )\w+(?:\(\w*\))?\.run\(\)|stop_on=(?!.*SIGINT)")
    assert any("stop_on=" in text for _, text in shown)
    assert [place for place, text in shown + kept if endless.search(text)] == []


def test_no_source_sends_its_readers_to_a_page_that_is_not_there() -> None:
    sources = [path for folder in ("worker", "tests", "bench", "deploy", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]
    there = {path.name for path in ROOT.glob("*.md")} | {"SKILL.md"}
    named = {found: path for path in sources for found in re.findall(r"\b[A-Z]{4,}\.md\b", path.read_text(encoding="utf-8"))}
    assert {page: path for page, path in named.items() if page not in there} == {}


def test_every_test_that_a_page_names_is_there() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = [(page, name) for page in pages() for name in re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8"))]
    assert named
    assert [(page, name) for page, name in named if f"def {name}(" not in tests] == []
