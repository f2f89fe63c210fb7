"""Find files that the configuration names, and refuse those that are missing, unreadable or open to other users."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from nats_taskflow.errors import ConfigError
from nats_taskflow.secret_paths import check_path


def config_home(environ: Mapping[str, str]) -> Path:
    """Give the folder of the user's configuration: `$XDG_CONFIG_HOME`, else `~/.config`."""
    given = Path(environ.get("XDG_CONFIG_HOME", ""))  # a relative one counts as none (XDG Base Directory): it would be wherever one stands
    return given if given.is_absolute() else Path(environ.get("HOME") or "/") / ".config"


def expand(path: str) -> Path:
    """Resolve a leading `~`; raise `ValueError` when nobody's home is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as failure:
        raise ValueError(f"the home folder in {path} is not known; write the whole path") from failure


def resolve_or_refuse(path: str | Path) -> Path:
    """Resolve a path of the command line to a whole one; raise `ConfigError` where there is no home or no working folder."""
    try:
        return expand_or_refuse(path).resolve()
    except FileNotFoundError:
        raise no_working_folder() from None


def expand_or_refuse(path: str | Path) -> Path:
    """Resolve a leading `~` of a path of the command line; raise `ConfigError` when nobody's home is known."""
    try:
        return expand(str(path))
    except ValueError as failure:
        raise ConfigError(str(failure)) from failure


def working_folder() -> Path:
    """Give the working folder; raise `ConfigError` when somebody has removed it."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise no_working_folder() from None


def no_working_folder() -> ConfigError:
    """Make the refusal to start where there is no folder."""
    return ConfigError("the folder that this was started in has been removed: go to one that is there (cd), then start again")


def check_file(path: str) -> str:
    """Give the path of a file that exists and can be read, `~` resolved; raise `ValueError` otherwise."""
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
    """Give the full path of a readable file that only its owner can read; raise `ValueError` otherwise.

    A file that belongs to somebody else may be readable by its group: that is how Kubernetes hands a secret to a non-root process.
    """
    full = check_file(path)
    with Path(full).open("rb") as file:
        problem = exposure(os.fstat(file.fileno()), path)
    if problem:
        raise ValueError(problem)
    return full


def exposure(status: os.stat_result, path: str | Path) -> str:
    """Say why what stands in an open file is no secret; empty where only its owner can read it, or a group that its owner handed it to."""
    open_to_others = stat.S_IMODE(status.st_mode) & (0o077 if status.st_uid == os.geteuid() else 0o037)
    return f"{path} can be read by other users (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {path}" if open_to_others else ""


def reason(failure: OSError | UnicodeDecodeError) -> str:
    """Give the reason of a failed read in a few words."""
    return (failure.strerror or type(failure).__name__).lower() if isinstance(failure, OSError) else "it is not UTF-8 text"
