"""Know where `taskflow dev` keeps its database, so that commands in the same folder find it without being told."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.config import Found

FOLDER = Path(".taskflow")
DATABASE = FOLDER / "flows.db"


def find_dev_database() -> Mapping[str, Found]:
    """Presume the database that `taskflow dev` made here, where this user owns it and nobody else can have put it there."""
    from worker.config import Config, Found

    usual = Path(Config().store.path)
    if usual.exists() or not all(_is_ours(path) for path in (FOLDER, DATABASE)):
        return {}
    return {"store.path": Found(str(DATABASE), f"left by taskflow dev in ./{FOLDER}")}


def _is_ours(path: Path) -> bool:
    """Tell whether it is there, is this user's, no link to elsewhere, and for nobody else to write."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
