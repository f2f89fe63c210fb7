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


@pytest.mark.parametrize("name", sorted(TESTS))
def test_the_example_is_tested_in_no_time(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "examples" / name, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "worker.testing.fixtures", "-p", "no:cacheprovider"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TESTS[name]} passed" in done.stdout
    assert time.monotonic() - begun < 60


def test_every_example_that_has_tests_is_tested() -> None:
    assert {path.parent.name for path in (ROOT / "examples").glob("*/test_*.py")} == set(TESTS)
