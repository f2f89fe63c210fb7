"""Hold a surface's exact text in one file: `TASKFLOW_SNAPSHOTS=write` writes the present one, for a person to read in the diff."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "snapshots"


def assert_same(name: str, text: str) -> None:
    """Compare with the file of this name below tests/snapshots/."""
    path = FOLDER / name
    if os.environ.get("TASKFLOW_SNAPSHOTS") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{path} differs: TASKFLOW_SNAPSHOTS=write takes the present text"
