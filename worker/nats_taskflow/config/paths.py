"""Resolve the configuration's paths; refuse missing, unreadable or exposed files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from nats_taskflow.errors import ConfigError
from nats_taskflow.secret_paths import check_path


def config_home(environ: Mapping[str, str]) -> Path:
    """Return the folder of the user's configuration.

    `$XDG_CONFIG_HOME`, else `~/.config`.
    """
    folder = Path(environ.get("XDG_CONFIG_HOME", ""))  # a relative path counts as none (XDG Base Directory)
    return folder if folder.is_absolute() else Path(environ.get("HOME") or "/") / ".config"


def expand(path: str) -> Path:
    """Expand a leading `~`. Raises `ValueError` when that home is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as failure:
        raise ValueError(f"the home folder in {path} is not known; write the whole path") from failure


def resolve_or_refuse(path: str | Path) -> Path:
    """Return a path of the command line as an absolute one.

    Raises `ConfigError` where there is no home or no working folder.
    """
    try:
        return expand_or_refuse(path).resolve()
    except FileNotFoundError:
        raise _no_working_folder() from None


def expand_or_refuse(path: str | Path) -> Path:
    """Expand a leading `~` in a path of the command line.

    Raises `ConfigError` when that home is not known.
    """
    try:
        return expand(str(path))
    except ValueError as failure:
        raise ConfigError(str(failure)) from failure


def working_folder() -> Path:
    """Return the working folder. Raises `ConfigError` when it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise _no_working_folder() from None


def _no_working_folder() -> ConfigError:
    return ConfigError("the folder that this was started in has been removed: go to one that is there (cd), then start again")


def check_file(path: str) -> str:
    """Return the path, with `~` expanded, of a file that exists and can be read.

    Raises `ValueError` otherwise.
    """
    check_path(path)
    full = expand(path)
    try:
        if not full.is_file():
            raise ValueError(f"there is no file {path}; check the path")
        with full.open("rb"):
            return str(full)
    except OSError as failure:
        raise ValueError(f"the file {path} cannot be read ({reason(failure)}); check its path and permissions") from failure


def check_private(path: str) -> str:
    """Return the path, with `~` expanded, of a file that only its owner can read.

    Raises `ValueError` otherwise.

    A file of another owner may be readable by its group: that is how Kubernetes gives a secret to a non-root process.
    """
    full = check_file(path)
    with Path(full).open("rb") as file:
        problem = exposure(os.fstat(file.fileno()), path)
    if problem:
        raise ValueError(problem)
    return full


def exposure(status: os.stat_result, path: str | Path) -> str:
    """Return why the content of an open file is no secret.

    Empty where only its owner can read it, or a group that the owner chose.
    """
    open_to_others = stat.S_IMODE(status.st_mode) & (0o077 if status.st_uid == os.geteuid() else 0o037)
    return f"{path} can be read by other users (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {path}" if open_to_others else ""


def reason(failure: OSError | UnicodeDecodeError) -> str:
    """Return the reason of a failed read in a few words."""
    return (failure.strerror or type(failure).__name__).lower() if isinstance(failure, OSError) else "it is not UTF-8 text"
