"""The examples' own tests pass, as whoever copies a folder runs them, and their days and months take no time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {"agent_loop": 11, "approval": 3, "fan_out": 2, "month_long_approval": 4}


@pytest.mark.page
@pytest.mark.parametrize("name", sorted(TESTS))
def test_the_example_is_tested_in_no_time_by_the_command_that_it_prints(name: str) -> None:
    (test,) = (ROOT / "examples" / name).glob("test_*.py")
    printed = f"pytest examples/{name}"
    assert f"`{printed}`" in test.read_text(encoding="utf-8").partition("\n")[0]
    begun = time.monotonic()
    done = run_pytest(ROOT, *printed.split())
    assert f"{TESTS[name]} passed" in done.stdout, done.stdout + done.stderr
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("name", sorted(TESTS))
def test_a_copied_example_is_tested_as_well(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples" / "pytest.ini", tmp_path)
    done = run_pytest(tmp_path, "pytest")
    assert f"{TESTS[name]} passed" in done.stdout, done.stdout + done.stderr


def run_pytest(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, as somebody does who has the worker installed."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    whole = [sys.executable, "-m", *command, "-p", "nats_taskflow.testing.fixtures", "-p", "no:cacheprovider"]
    return subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100)


def test_every_example_that_has_tests_is_tested() -> None:
    assert {path.parent.name for path in (ROOT / "examples").glob("*/test_*.py")} == set(TESTS)
