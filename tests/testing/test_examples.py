"""The example's own tests pass, as whoever copies it runs them, and its month takes no time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_month_long_approval_is_tested_in_no_time(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "examples" / "month_long_approval", tmp_path / "approval", ignore=shutil.ignore_patterns("__pycache__"))
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
    assert "4 passed" in done.stdout
    assert time.monotonic() - begun < 60
