"""The Makefile, on a folder of its own with a Python that only says its version."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a clone that is set up with Python 3.13.0; `.ci/environment` writes down what it is called with."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    script(tmp_path / ".ci" / "environment", 'echo "$@" >> made')
    script(tmp_path / ".venv" / "bin" / "python", "echo Python 3.13.0")
    script(tmp_path / ".venv" / "bin" / "taskflow", "echo 0")
    (tmp_path / ".venv" / ".ready").touch()
    return tmp_path


def made(folder: Path, *arguments: str) -> list[str]:
    """Run `make setup` and return the environments that it made. What `make test` itself was told does not count."""
    environment = {"PATH": os.environ["PATH"]}
    subprocess.run(["make", "setup", *arguments], cwd=folder, env=environment, check=True, capture_output=True, timeout=60)
    log = folder / "made"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_another_python_than_that_of_the_environment_is_obeyed(folder: Path) -> None:
    other = script(folder / "python3.12", "echo Python 3.12.1")
    assert made(folder, f"PYTHON={other}") == [f".venv {other}"]


def test_the_same_python_and_none_leave_the_environment_as_it_is(folder: Path) -> None:
    same = script(folder / "python3.13", "echo Python 3.13.0")
    assert made(folder, f"PYTHON={same}") == []
    assert made(folder) == []
