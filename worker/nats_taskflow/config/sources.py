"""Gather what flags, environment, file and NATS context say, each as a layer of raw values that knows where it came from."""

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
from nats_taskflow.config.tree import settings
from nats_taskflow.errors import ConfigError
from nats_taskflow.files import check_folders, check_unwritable, open_own

_RESERVED: Mapping[str, tuple[Any, ...]] = {
    # Keys of the documented file whose feature this version lacks: taken where they ask for nothing, refused where they would be a promise.
    "store.backup_dir": ("",),
    "web.enabled": (True, False),
    "web.access": ("all", "read_only"),
    "web.hide_state": (True, False),
}
_TABLES = ("replies", "delegates")
_HEAD = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")
_CLOSE_VARIABLE = 0.9  # a typo of one of our names; a variable Kubernetes makes for a service called taskflow is further off


class SourcedValue(msgspec.Struct, frozen=True):
    """A raw value, where it came from, and whether it is text that still has to be parsed."""

    value: Any
    origin: str
    text: bool = True
    exposed: str = ""
    """Why a secret that stands there is none: others can read the file."""


class ConfigFile(msgspec.Struct, frozen=True):
    """A configuration file. `found`: it lies in the working directory, and nobody has named it."""

    path: Path
    found: bool = False


Layer = Mapping[str, SourcedValue]


def from_flags(flags: Mapping[str, str]) -> Layer:
    """Give the layer of the command line; `flags` maps keys (`store.path`) to texts."""
    flag = {setting.key: setting.flag for setting in settings()}
    return {key: SourcedValue(value, f"flag {flag[key]}") for key, value in flags.items()}


def from_environment(environ: Mapping[str, str]) -> Layer:
    """Give the layer of the environment. A variable that is set but empty counts as not set, except for lists that may be empty."""
    _refuse_misspelt(environ)
    layer = {}
    for setting in settings():
        for name in setting.variables:
            if environ.get(name) or (setting.about.empty_counts and name in environ):
                layer[setting.key] = SourcedValue(environ[name], f"environment {name}")
                break
    return layer


def _refuse_misspelt(environ: Mapping[str, str]) -> None:
    """Refuse a variable that is almost one of ours: it would be ignored, and the worker would run with another value."""
    known = {name for setting in settings() for name in setting.variables} | {"TASKFLOW_CONFIG"}
    for name in sorted(environ):
        if name.startswith("TASKFLOW_") and name not in known:
            near = _alike(name, known, _CLOSE_VARIABLE)
            if near:
                raise ConfigError(f"environment: {name} is no setting; did you mean {near[0]}?")


def find_file(given: str, environ: Mapping[str, str], folder: Path) -> ConfigFile | None:
    """Give the file `given` by flag, or named by `$TASKFLOW_CONFIG`, else the first that exists of the usual places; None without one."""
    named = given or environ.get("TASKFLOW_CONFIG", "")
    if named:
        origin = "flag --config" if given else "environment TASKFLOW_CONFIG"
        try:
            path = folder / expand(named)
        except ValueError as failure:
            raise ConfigError(f"{failure} ({origin})") from failure
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {named} ({origin}); check the path")
        return ConfigFile(path)
    usual = (
        ConfigFile(folder / "taskflow.toml", found=True),
        ConfigFile(config_home(environ) / "taskflow" / "config.toml"),
        ConfigFile(Path("/etc/taskflow/config.toml")),
    )
    return next((file for file in usual if file.path.is_file()), None)


def from_file(file: ConfigFile) -> Layer:
    """Give the layer of a TOML file. Raise `ConfigError` naming the file when it cannot be read or has a key that it may not have."""
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
    for written, value in _flatten(content, path):
        if written in _RESERVED:
            _check_reserved(path, written, value)
        elif written not in names:
            raise ConfigError(f'{_place(text, path, written)}: unknown key "{written}"{_near(written, [*names, *_RESERVED])}')
        elif file.found and isinstance(names[written].about, GuardedSetting):
            raise ConfigError(
                f'{_place(text, path, written)}: "{written}" says where to connect or listen, or as whom, and nobody named this file: '
                f"it may have come with somebody else's folder. If it is yours, name it: --config {path.name}, or TASKFLOW_CONFIG={path}"
            )
        elif names[written].key in layer:
            raise ConfigError(f'{path}: "{written}" and "{names[written].key}" are the same setting; keep one of them')
        else:
            layer[names[written].key] = SourcedValue(value, f"file {path}", text=False, exposed=exposed)
    return layer


def _read(file: ConfigFile) -> tuple[str, str]:
    """Give the text of a file, and why no secret can stand there (empty: only its owner reads it). A found one must be this user's."""
    path = file.path
    try:
        with os.fdopen(open_own(path, os.O_RDONLY) if file.found else os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as opened:
            status = os.fstat(opened.fileno())
            if file.found:
                check_unwritable(status, path)
                check_folders(path.parent)
            return opened.read().decode("utf-8"), exposure(status, path)
    except PermissionError as failure:
        advice = f"if you trust it, name it: --config {path.name}, or TASKFLOW_CONFIG={path}" if file.found else "check its permissions"
        raise ConfigError(f"{path} is not read ({reason(failure)}); {advice}") from failure
    except OSError as failure:
        raise ConfigError(f"{path} cannot be read ({reason(failure)}); check its permissions") from failure


def _flatten(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Give (`section.key`, value) for each value in the file."""
    sections = {setting.key.partition(".")[0] for setting in settings()} | {key.partition(".")[0] for key in _RESERVED}
    for section, value in content.items():
        if section in _TABLES:
            yield section, value
        elif section not in sections:
            kind = "section" if isinstance(value, dict) else "key"
            raise ConfigError(f'{path}: unknown {kind} "{section}"{_near(section, sections)}')
        elif not isinstance(value, dict):
            raise ConfigError(f"{path}: {section} must be a table, written as [{section}]")
        else:
            yield from ((f"{section}.{key}", inner) for key, inner in value.items())


def _place(text: str, path: Path, written: str) -> str:
    """Return the file and the line on which a key is written, as editors take it; only the file where the line is not found."""
    wanted, _, key = written.rpartition(".")
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := _HEAD.match(line):
            section = head[1]
        elif section == wanted and (one := _KEY.match(line)) and one[1] == key:
            return f"{path}:{number}"
    return str(path)


def _check_reserved(path: Path, key: str, value: object) -> None:
    """Refuse a key that asks for something this version does not have."""
    if not any(value is fine or (isinstance(fine, str) and value == fine) for fine in _RESERVED[key]):
        raise ConfigError(f"{path}: {key} = {value!r} asks for something this version does not have; remove the line")


def _alike(written: str, known: Collection[str], cutoff: float) -> list[str]:
    """Return the known name that is most like this, if one is like it."""
    from difflib import get_close_matches  # noqa: PLC0415 - only for what is misspelt

    return get_close_matches(written, sorted(known), n=1, cutoff=cutoff)


def _near(written: str, known: list[str] | set[str]) -> str:
    """Give `; did you mean …?` when a known name is close."""
    close = _alike(written, known, 0.6)
    if not close:
        leaf = written.rpartition(".")[2]
        close = [name for name in sorted(known) if name.rpartition(".")[2] == leaf][:1]
    return f'; did you mean "{close[0]}"?' if close else "; see `taskflow config show` for all of them"


def from_context(name: str, environ: Mapping[str, str], named_by: str) -> Layer:
    """Give the layer of a NATS CLI context; `named_by` is the origin of the name, for the error."""
    try:
        values, exposed = read_context(name, environ)
    except ValueError as failure:
        raise ConfigError(f"nats.context: {failure} ({named_by})") from failure
    return {key: SourcedValue(value, f"NATS context {name}", exposed=exposed) for key, value in values.items()}
