"""A module of tests whose bytecode is kept is not collected once more, and one that changed since is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.bytecode import is_rewritten


def test_a_module_is_collected_again_when_it_changed_since_its_bytecode_was_kept(tmp_path: Path) -> None:
    module = tmp_path / "test_one.py"
    module.write_text("def test_one() -> None: ...\n", encoding="utf-8")
    assert not is_rewritten(module)
    kept = tmp_path / "__pycache__" / f"test_one.{sys.implementation.cache_tag}-pytest-9.0.0.pyc"
    kept.parent.mkdir()
    kept.touch()
    assert is_rewritten(module)
    os.utime(module, (kept.stat().st_mtime + 1, kept.stat().st_mtime + 1))
    assert not is_rewritten(module)


def test_the_bytecode_of_another_python_is_none(tmp_path: Path) -> None:
    module = tmp_path / "test_one.py"
    module.touch()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "test_one.cpython-27-pytest-9.0.0.pyc").touch()
    assert not is_rewritten(module)
