"""Compile once what each process of the tests would compile anew: the worker, and the tests with their rewritten asserts.

Bytecode is written whatever PYTHONDONTWRITEBYTECODE says. pytest rewrites the asserts of a module when it collects it: 15 s of CPU for all
of them, in each process of pytest-xdist. So two processes collect first, half of the modules each, and all others read what they wrote.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
_COLLECTING = "TASKFLOW_COLLECTING"
"""Set in the processes that do nothing but collect."""


def compile_worker() -> None:
    """Compile the worker and what is planted in it: the tests start it hundreds of times."""
    for folder in (ROOT / "worker" / "nats_taskflow", TESTS / "faults"):
        compileall.compile_dir(folder, quiet=2)


def rewrite_asserts() -> None:
    """Have the modules of tests collected that changed since they last were. A module that fails to import says so in the run itself."""
    if _COLLECTING in os.environ:
        return
    changed = sorted(str(path) for path in TESTS.rglob("test_*.py") if not is_rewritten(path))
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {_COLLECTING: "1"}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-n0", "-p", "no:cacheprovider"]
    halves = [half for half in (changed[::2], changed[1::2]) if half]
    collecting = [subprocess.Popen([*command, *half], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL) for half in halves]
    for process in collecting:
        process.wait()


def is_rewritten(path: Path) -> bool:
    """Tell whether pytest has kept a module's bytecode since it was last written."""
    return any(kept.stat().st_mtime >= path.stat().st_mtime for kept in _kept(path))


def _kept(path: Path) -> Iterable[Path]:
    """Find the bytecode of a module with its asserts rewritten, by this Python."""
    return (path.parent / "__pycache__").glob(f"{path.stem}.{sys.implementation.cache_tag}-pytest-*.pyc")
