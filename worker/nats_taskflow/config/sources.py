"""Read flags, environment, file and NATS context as layers of raw values."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from nats_taskflow.config.nats_contexts import read_context
from nats_taskflow.config.paths import config_home, expand, exposure, reason
from nats_taskflow.config.setting import GuardedSetting
from nats_taskflow.config.settings import settings
from nats_taskflow.errors import ConfigError
from nats_taskflow.files import check_folders, check_unwritable, open_own

_RESERVED: Mapping[str, tuple[Any, ...]] = {
    # Documented keys whose feature this version lacks, with the values that ask for nothing. Others are refused.
    "store.backup_dir": ("",),
    "web.enabled": (True, False),
    "web.access": ("all", "read_only"),
    "web.hide_state": (True, False),
}
_TABLES = ("replies", "delegates")
_HEAD = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")
_CLOSE_VARIABLE = 0.9  # above it, a typo of ours; the variables that Kubernetes sets for a service called taskflow are below


class SourcedValue(msgspec.Struct, frozen=True):
    """A raw value and its origin.

    `text`: it came from a flag or the environment, where everything is text.
    """

    value: Any
    origin: str
    text: bool = True
    exposed: str = ""
    """Why the value cannot be a secret: others can read the file."""


class ConfigFile(msgspec.Struct, frozen=True):
    """A configuration file.

    `unnamed`: it lies in the working directory, and nobody has named it.
    """

    path: Path
    unnamed: bool = False


Layer = Mapping[str, SourcedValue]


def from_flags(flags: Mapping[str, str]) -> Layer:
    """Return the layer of the command line. `flags` maps keys (`store.path`) to texts."""
    flag = {setting.key: setting.flag for setting in settings()}
    return {key: SourcedValue(value, f"flag {flag[key]}") for key, value in flags.items()}


def from_environment(environ: Mapping[str, str]) -> Layer:
    """Return the layer of the environment.

    An empty variable counts as not set, except for lists that may be empty.
    """
    _refuse_misspelt(environ)
    layer = {}
    for setting in settings():
        for name in setting.variables:
            if environ.get(name) or (setting.about.empty_counts and name in environ):
                layer[setting.key] = SourcedValue(environ[name], f"environment {name}")
                break
    return layer


def _refuse_misspelt(environ: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a variable with almost one of our names.

    It would be ignored, and the default used.
    """
    known = {name for setting in settings() for name in setting.variables} | {"TASKFLOW_CONFIG"}
    for name in sorted(environ):
        if name.startswith("TASKFLOW_") and name not in known and (close := _closest(name, known, _CLOSE_VARIABLE)):
            raise ConfigError(f"environment: {name} is no setting; did you mean {close[0]}?")


def find_file(flag: str, environ: Mapping[str, str], folder: Path) -> ConfigFile | None:
    """Return the settings file: the named one, else the first in the usual places.

    The flag or `$TASKFLOW_CONFIG` names it. None without one.
    """
    name = flag or environ.get("TASKFLOW_CONFIG", "")
    if name:
        origin = "flag --config" if flag else "environment TASKFLOW_CONFIG"
        try:
            path = folder / expand(name)
        except ValueError as failure:
            raise ConfigError(f"{failure} ({origin})") from failure
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {name} ({origin}); check the path")
        return ConfigFile(path)
    usual = (
        ConfigFile(folder / "taskflow.toml", unnamed=True),
        ConfigFile(config_home(environ) / "taskflow" / "config.toml"),
        ConfigFile(Path("/etc/taskflow/config.toml")),
    )
    return next((file for file in usual if file.path.is_file()), None)


def from_file(file: ConfigFile) -> Layer:
    """Return the layer of a TOML file.

    Raises `ConfigError`, which names the file, when it cannot be read or has a wrong key.
    """
    import tomllib  # noqa: PLC0415 - most commands find no file, and it takes as long to load as all the settings

    path = file.path
    try:
        text, exposed = _read(file)
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise ConfigError(f"{path} is not valid TOML: {failure}") from failure
    if content.pop("version", 1) != 1:
        raise ConfigError(f"{path}: version must be 1, the only form of this file so far")
    names = {name: setting for setting in settings() for name in (setting.key, *setting.about.keys)}
    layer: dict[str, SourcedValue] = {}
    for key, value in _flatten(content, path):
        if key in _RESERVED:
            _check_reserved(path, key, value)
        elif key not in names:
            raise ConfigError(f'{_place(text, path, key)}: unknown key "{key}"{_suggestion(key, [*names, *_RESERVED])}')
        elif file.unnamed and isinstance(names[key].about, GuardedSetting):
            raise ConfigError(
                f'{_place(text, path, key)}: "{key}" says where to connect or listen, or as whom, and nobody named this file: '
                f"it may have come with somebody else's folder. If it is yours, name it: --config {path.name}, or TASKFLOW_CONFIG={path}"
            )
        elif names[key].key in layer:
            raise ConfigError(f'{path}: "{key}" and "{names[key].key}" are the same setting; keep one of them')
        else:
            layer[names[key].key] = SourcedValue(value, f"file {path}", text=False, exposed=exposed)
    return layer


def _read(file: ConfigFile) -> tuple[str, str]:
    """Return the text of a file, and why it cannot hold a secret.

    The reason is empty where only its owner can read it.

    An unnamed file must belong to this user.
    """
    path = file.path
    try:
        with os.fdopen(open_own(path, os.O_RDONLY) if file.unnamed else os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as opened:
            status = os.fstat(opened.fileno())
            if file.unnamed:
                check_unwritable(status, path)
                check_folders(path.parent)
            return opened.read().decode("utf-8"), exposure(status, path)
    except PermissionError as failure:
        advice = f"if you trust it, name it: --config {path.name}, or TASKFLOW_CONFIG={path}" if file.unnamed else "check its permissions"
        raise ConfigError(f"{path} is not read ({reason(failure)}); {advice}") from failure
    except OSError as failure:
        raise ConfigError(f"{path} cannot be read ({reason(failure)}); check its permissions") from failure


def _flatten(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (`section.key`, value) for each value in the file."""
    sections = {setting.key.partition(".")[0] for setting in settings()} | {key.partition(".")[0] for key in _RESERVED}
    for section, value in content.items():
        if section in _TABLES:
            yield section, value
        elif section not in sections:
            kind = "section" if isinstance(value, dict) else "key"
            raise ConfigError(f'{path}: unknown {kind} "{section}"{_suggestion(section, sections)}')
        elif not isinstance(value, dict):
            raise ConfigError(f"{path}: {section} must be a table, written as [{section}]")
        else:
            yield from ((f"{section}.{key}", inner) for key, inner in value.items())


def _place(text: str, path: Path, dotted: str) -> str:
    """Return file and line of a key, as editors take them.

    Only the file where the line cannot be found.
    """
    table, _, key = dotted.rpartition(".")
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := _HEAD.match(line):
            section = head[1]
        elif section == table and (match := _KEY.match(line)) and match[1] == key:
            return f"{path}:{number}"
    return str(path)


def _check_reserved(path: Path, key: str, value: object) -> None:
    """Raise `ConfigError` for a key that is reserved for a later version."""
    if not any(value is harmless or (isinstance(harmless, str) and value == harmless) for harmless in _RESERVED[key]):
        raise ConfigError(f"{path}: {key} = {value!r} asks for something this version does not have; remove the line")


def _closest(name: str, known: Collection[str], cutoff: float) -> list[str]:
    from difflib import get_close_matches  # noqa: PLC0415 - only for misspelt names

    return get_close_matches(name, sorted(known), n=1, cutoff=cutoff)


def _suggestion(name: str, known: list[str] | set[str]) -> str:
    """Return `; did you mean …?` when a known name is close."""
    close = _closest(name, known, 0.6)
    if not close:
        leaf = name.rpartition(".")[2]
        close = [other for other in sorted(known) if other.rpartition(".")[2] == leaf][:1]
    return f'; did you mean "{close[0]}"?' if close else "; see `taskflow config show` for all of them"


def from_context(name: str, environ: Mapping[str, str], origin: str) -> Layer:
    """Return the layer of a NATS CLI context.

    `origin` is that of its name, for errors.
    """
    try:
        values, exposed = read_context(name, environ)
    except ValueError as failure:
        raise ConfigError(f"nats.context: {failure} ({origin})") from failure
    return {key: SourcedValue(value, f"NATS context {name}", exposed=exposed) for key, value in values.items()}
