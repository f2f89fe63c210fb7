"""The folder in which `taskflow dev` keeps its data, for other commands to find.

It may have come with somebody else's folder, a clone or an archive. So only what `taskflow dev` itself makes is used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nats_taskflow.cli.options import load_config
from nats_taskflow.errors import ConfigError
from nats_taskflow.files import user

if TYPE_CHECKING:
    from nats_taskflow.config import Config, SourcedValue

FOLDER = Path(".taskflow")
DATABASE = FOLDER / "flows.db"
STREAMS = FOLDER / "nats"
_OTHERS_ENTER, _OTHERS_WRITE = 0o077, 0o022


def find_dev_database() -> Mapping[str, SourcedValue]:
    """Return the setting for the database that `taskflow dev` made here.

    Empty unless it is the only database here.
    """
    from nats_taskflow.config import Config, SourcedValue

    usual = Path(Config().store.path)
    if usual.exists() or not DATABASE.exists() or find_flaw():
        return {}
    return {"store.path": SourcedValue(str(DATABASE), f"left by taskflow dev in ./{FOLDER}")}


def load_with_database(arguments: Mapping[str, Any]) -> Config:
    """Load the settings for a command on a database: the named one, or the only one.

    Raises `ConfigError` where two are here and none is named: to check or copy the wrong one would look like a success.
    """
    config = load_config(arguments, find_dev_database())
    usual = Path(config.store.path)
    if config.origin("store.path") == "default" and usual.exists() and DATABASE.exists() and not find_flaw():
        raise ConfigError(f"there are two databases here, {usual} and {DATABASE}: say which one is meant, with --store-path")
    return config


def prepare_folder() -> None:
    """Make the folder, for this user only and invisible to git.

    Raises `ConfigError` where that fails, or where the folder is somebody else's.
    """
    try:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        if why := find_flaw():
            raise ConfigError(f"{Path.cwd() / why}; it was not made by `taskflow dev`: move {FOLDER} away, or start in another folder")
        ignore = FOLDER / ".gitignore"
        if not os.path.lexists(ignore):
            ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        where = Path.cwd() / FOLDER
        raise ConfigError(f"{where} cannot be made ({error.strerror}); run `taskflow dev` in a folder that you may write to") from error


def find_flaw() -> str:
    """Describe what differs from what `taskflow dev` makes; "" where nothing does.

    Something may belong to somebody else, be a link, or be open to others.
    """
    for path, forbidden in ((FOLDER, _OTHERS_ENTER), (DATABASE, _OTHERS_WRITE), (STREAMS, 0)):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(status.st_mode):
            return f"{path} is a symbolic link"
        if status.st_uid != os.geteuid():
            return f"{path} belongs to {user(status.st_uid)}"
        if status.st_mode & forbidden:
            return f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
