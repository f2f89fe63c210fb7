"""Know where `taskflow dev` keeps its database, so that commands in the same folder find it without being told."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.config import Config, Found

FOLDER = Path(".taskflow")
DATABASE = FOLDER / "flows.db"


def find_dev_database() -> Mapping[str, Found]:
    """Presume the database that `taskflow dev` made here, where this user owns it and nobody else can have put it there."""
    from worker.config import Config, Found

    usual = Path(Config().store.path)
    if usual.exists() or not all(_is_ours(path) for path in (FOLDER, DATABASE)):
        return {}
    return {"store.path": Found(str(DATABASE), f"left by taskflow dev in ./{FOLDER}")}


def load_with_database(arguments: Mapping[str, Any]) -> Config:
    """Load the settings of a command that works on a database: the one that is named, else the only one here.

    Raises `ConfigError` where nobody has said which of two is meant: to check or copy the wrong one would look like a success.
    """
    from worker.cli.options import load_config
    from worker.errors import ConfigError

    config = load_config(arguments, find_dev_database())
    usual = Path(config.store.path)
    if config.origin("store.path") == "default" and usual.exists() and _is_ours(DATABASE):
        raise ConfigError(f"there are two databases here, {usual} and {DATABASE}: say which one is meant, with --store-path")
    return config


def _is_ours(path: Path) -> bool:
    """Tell whether it is there, is this user's, no link to elsewhere, and for nobody else to write."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
