"""A lock is installed as it is. With resolution pip looks up anew what a locked package's extras need, and finds what has no pin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import ROOT, pages

_FOLDERS = (".ci", "bench", "deploy")
_SKIPPED = (".venv", "node_modules", "__pycache__")
_LOCK = re.compile(r"--require-hashes|--requirement\b|\s-r\s")
PLACES = {
    ".ci/environment",
    "Makefile",
    "bench/compared.py",
    "deploy/container/Containerfile",
    "deploy/systemd/README.md",
}
"""Where locks are installed."""


def sources() -> list[Path]:
    """List every file that may install something, but for the product and its tests."""
    found = [
        path for folder in _FOLDERS for path in (ROOT / folder).rglob("*") if not any(part.startswith(_SKIPPED) for part in path.parts)
    ]
    texts = [path for path in found if path.is_file() and path.suffix not in {".lock", ".txt", ".in"}]
    return sorted({ROOT / "Makefile", *(ROOT / page for page in pages()), *texts})


def installs(text: str) -> list[str]:
    """Return the commands that install a lock, each on one line."""
    lines = re.sub(r"\\\n\s*", " ", text).replace('"', " ").splitlines()
    commands = [command.strip() for line in lines for command in re.split(r"&&|;", line)]
    return [command for command in commands if re.search(r"\binstall\b", command) and _LOCK.search(command)]


def test_every_lock_is_installed_without_resolution_and_with_hashes() -> None:
    found = {str(path.relative_to(ROOT)): installs(path.read_text(encoding="utf-8")) for path in sources()}
    assert {name for name, commands in found.items() if commands} == PLACES
    every = [(name, command) for name, commands in found.items() for command in commands]
    assert [one for one in every if not {"--no-deps", "--require-hashes"} <= set(re.split(r"[\s,]+", one[1]))] == []


@pytest.mark.parametrize("lock", ["requirements.lock", "deploy/requirements-check.txt", "bench/peers/requirements.txt"])
def test_a_lock_pins_everything_by_version_and_hash(lock: str) -> None:
    pins = re.split(r"\n(?=\S)", (ROOT / lock).read_text(encoding="utf-8"))
    assert [pin for pin in pins if not pin.startswith("#") and not re.match(r"[a-z0-9.-]+==\S+[^\n]*\\\n    --hash=", pin)] == []


def test_the_locks_cover_the_pythons_that_are_supported() -> None:
    """A lock for a newer Python only would leave out what an older one needs; `.ci/pythons` reads the classifiers."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = min(map(int, re.findall(r"Python :: 3\.(\d+)", text)))
    assert f'requires-python = ">=3.{oldest}"' in text
    assert f"--python-version 3.{oldest} " in (ROOT / "Makefile").read_text(encoding="utf-8")
