"""Golden files: what a surface says, word for word, in one file under tests/snapshots/.

Every other test asserts of a text the code, the path and one key word, so that better prose changes one file and no test.
`make snapshots` takes the present texts (it runs the tests called `…word_for_word…` with `TASKFLOW_SNAPSHOTS=write`): read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOTS = Path(__file__).parent / "snapshots"


def golden(name: str, present: str) -> str:
    """Return what the file says; where that was asked for, write the present text into it first."""
    path = SNAPSHOTS / name
    if os.environ.get("TASKFLOW_SNAPSHOTS") == "write":
        path.write_text(present, encoding="utf-8")
    return path.read_text(encoding="utf-8") if path.exists() else ""
