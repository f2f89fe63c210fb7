"""The Makefile, on a folder of its own with a Python that only says its version."""

from __future__ import annotations

import os
import re
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


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Give a clone with a space in its path whose scripts are the real ones."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


FAKE_PYTHON = """
case "$*" in
    *'-m venv'*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
    *requirements.lock*) echo "$PIP_SAYS" >&2; exit "${PIP_ENDS:-0}" ;;
    *'-m pip'*) ;;
    *sys.executable*) echo "$0" ;;
    *sys.version_info*) exit "${OLD:-0}" ;;
    *) echo "${VERSION:-3.13.0}" ;;
esac
"""
"""A Python that makes environments of itself and installs nothing."""


def set_up(clone: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of `.ci` in the clone, as make does."""
    return subprocess.run(
        [f".ci/{script}", *arguments],
        cwd=clone,
        env={"PATH": os.environ["PATH"], **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("elsewhere", [".", "other"])
def test_a_cdpath_leads_no_script_astray(clone: Path, elsewhere: str) -> None:
    """`cd` prints where it went by CDPATH, and goes to another folder of the same name first."""
    (clone / "other" / ".ci").mkdir(parents=True)
    few = {"PATH": "/usr/bin:/bin", "PYENV_ROOT": str(clone)}  # to look for Pythons takes a while where there are many
    plain, led = set_up(clone, "pythons", **few), set_up(clone, "pythons", **few, CDPATH=elsewhere)
    assert (led.stdout, led.returncode) == (plain.stdout, 0)
    for path in (ROOT / ".ci").iterdir():
        lines = [line.partition("  #")[0] for line in path.read_text(encoding="utf-8").splitlines()]
        assert lines.index("unset CDPATH") < min(at for at, line in enumerate(lines) if line.startswith("cd ")), path


def test_an_environment_is_made_of_the_python_that_is_named(clone: Path) -> None:
    done = set_up(clone, "environment", ".venv", str(script(clone / "python3.13", FAKE_PYTHON)))
    assert done.returncode == 0, done.stderr
    assert (clone / ".venv" / ".ready").exists()


def test_a_python_that_is_not_there_is_said_before_anything_is_made(clone: Path) -> None:
    done = set_up(clone, "environment", ".venv", "python9.9")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "python9.9" in sentence
    assert not (clone / ".venv").exists()


def test_a_python_that_is_too_old_is_said_before_anything_is_made(clone: Path) -> None:
    old = script(clone / "python3.9", FAKE_PYTHON)
    done = set_up(clone, "environment", ".venv", str(old), VERSION="3.9.2", OLD="1")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "3.9.2" in sentence
    assert "3.11" in sentence
    assert not (clone / ".venv").exists()


RETRIED = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(no route)': /simple/anyio/"


@pytest.mark.parametrize(
    "said,sentence",
    [
        (f"{RETRIED}\nERROR: No matching distribution found for anyio==4.14.2", "cannot reach the package index"),
        (f"{RETRIED}\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "DO NOT MATCH"),
        ("ERROR: No matching distribution found for anyio==4.14.2", "No matching distribution"),
    ],
    ids=["no network", "another fault", "no such version"],
)
def test_a_package_index_out_of_reach_is_said_in_words_of_ours(clone: Path, said: str, sentence: str) -> None:
    python = script(clone / "python3.13", FAKE_PYTHON)
    done = set_up(clone, "environment", ".venv", str(python), PIP_SAYS=said, PIP_ENDS="1")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert ("No matching" in done.stderr) == ("No matching" in sentence)
    assert not (clone / ".venv" / ".ready").exists()


def test_the_help_of_check_names_the_stages_that_are_run() -> None:
    stages = re.findall(r"^for name in (.*); do$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    said = re.findall(r"^check: ## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"[a-z]+(?:-[a-z]+)*", said[0].partition(":")[2]) == stages[0].split()
