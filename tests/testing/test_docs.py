"""Every program of `docs/testing.md` runs and passes, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]+) -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_SETTINGS = re.search(r"^```ini\n(\[pytest\]\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
_STRICT = "addopts = --strict-markers\nfilterwarnings = error\n"


class Block(NamedTuple):
    mark: str | None
    code: str


BLOCKS = [Block(found["mark"], found["code"]) for found in _BLOCK.finditer(PAGE)]


def executed(folder: Path, *command: str) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "and nothing is warned of"
    return done.stdout


def passed(folder: Path, mark: str) -> None:
    """Run all blocks of a mark in one project: a file for each."""
    blocks = [block for block in BLOCKS if block.mark == mark]
    assert blocks
    assert _SETTINGS is not None, "the page says what a project needs for its tests to run without a warning"
    (folder / "pytest.ini").write_text(_SETTINGS[1] + _STRICT, encoding="utf-8")
    for number, block in enumerate(blocks):
        (folder / f"test_block_{number}.py").write_text(block.code, encoding="utf-8")
    said = executed(folder, "-m", "pytest", "-q", "-p", "nats_taskflow.testing.fixtures", "-p", "no:cacheprovider")
    assert f"{len(blocks)} passed" in said, said


def test_every_program_of_the_page_is_marked_and_so_tested() -> None:
    assert {block.mark for block in BLOCKS} == {"test", "test server", "program"}


@pytest.mark.page
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    passed(tmp_path, "test")


@pytest.mark.page
@pytest.mark.e2e
def test_the_test_with_a_real_server_passes(tmp_path: Path) -> None:
    passed(tmp_path, "test server")


@pytest.mark.page
def test_the_program_of_the_page_prints_the_story(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.mark == "program"]
    (tmp_path / "program.py").write_text(block.code, encoding="utf-8")
    said = executed(tmp_path, "program.py")
    assert said.startswith("the story of "), "and nothing else is printed"
    assert re.search(r"4  \+30d  resumed  by worker", said), said


def test_the_page_names_every_assert_and_fixture() -> None:
    from nats_taskflow.testing.assertions import Assertions

    for name in [name for name in vars(Assertions) if name.startswith("assert_")]:
        assert f"`{name}(" in PAGE, name
    for fixture in ("taskflow", "taskflow_clock", "taskflow_chaos", "taskflow_nats"):
        assert f"`{fixture}`" in PAGE
