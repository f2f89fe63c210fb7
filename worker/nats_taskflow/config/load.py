"""Load the configuration: lay the sources over each other, read every value, check what only makes sense together.

Precedence: flag > environment > file > NATS context (connection settings only) > `base` (what a command such as `dev` presumes) > default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nats_taskflow.config.parsers import RawValue
from nats_taskflow.config.paths import working_folder
from nats_taskflow.config.secrets import Secret, is_written_out
from nats_taskflow.config.setting import Setting
from nats_taskflow.config.sources import Layer, SourcedValue, find_file, from_context, from_environment, from_file, from_flags
from nats_taskflow.config.tree import Config, settings
from nats_taskflow.errors import ConfigError


def load(
    flags: Mapping[str, str] | None = None,
    *,
    config_file: str = "",
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    base: Mapping[str, SourcedValue] | None = None,
) -> Config:
    """Give the configuration in force; raise `ConfigError` (exit 78) with one line when it cannot be right.

    `flags` maps keys (`store.path`) to texts; `environ` and `folder` stand for the process's environment and working folder.
    """
    environ = os.environ if environ is None else environ
    file = find_file(config_file, environ, folder or working_folder())
    layers: list[Layer] = [from_flags(flags or {}), from_environment(environ), from_file(file) if file else {}]
    named = _first(layers, "nats.context")
    if named and named.value:
        layers.append(_context_layer(layers, named, environ))
    layers.append(base or {})
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in settings():
        found = _first(layers, setting.key)
        if found is not None:
            values[setting.key] = _read(setting, found, environ)
            origins[setting.key] = found.origin
    _user_alone_is_token(values, origins)
    return _checked(_build(values, origins))


def _first(layers: Sequence[Layer], key: str) -> SourcedValue | None:
    """Give the value of `key` from the highest layer that has one."""
    return next((layer[key] for layer in layers if key in layer), None)


def _context_layer(layers: Sequence[Layer], named: SourcedValue, environ: Mapping[str, str]) -> Layer:
    """Give the context's layer; refuse a context that was named above a different URL which would nevertheless win over it."""
    if not isinstance(named.value, str):
        raise ConfigError(f"nats.context: must be text in quotes ({named.origin})")
    context = from_context(named.value, environ, named.origin)
    url = _first(layers, "nats.url")
    above = next(at for at, layer in enumerate(layers) if "nats.context" in layer)
    if (
        url
        and "nats.url" in context
        and url.value != context["nats.url"].value
        and not any("nats.url" in layer for layer in layers[: above + 1])
    ):
        raise ConfigError(
            f"nats.url ({url.origin}) would win over the NATS context {named.value!r} ({named.origin}); remove one of the two"
        )
    return context


def _read(setting: Setting, found: SourcedValue, environ: Mapping[str, str]) -> Any:
    """Turn a raw value into the setting's type. An empty text takes back what a lower layer says, where nothing is the default."""
    if found.value == "" and setting.default in (None, ""):
        return setting.default
    try:
        value = setting.about.read(RawValue(found.value, found.text, environ))
    except ValueError as failure:
        problem = " ".join(str(failure).split())
        raise ConfigError(f"{setting.key}: {problem} ({found.origin})") from failure
    if found.exposed and is_written_out(value):
        raise ConfigError(f"{setting.key}: this is a secret, and {found.exposed} ({found.origin})")
    return value


def _user_alone_is_token(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Take `$NATS_USER` without a password as a token, as the nats CLI does ("Username or Token")."""
    if origins.get("nats.user") == "environment NATS_USER" and not values.get("nats.password") and not values.get("nats.token"):
        values["nats.token"], origins["nats.token"] = Secret(text=values.pop("nats.user")), origins.pop("nats.user")


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """Put the values into the tree; what is not in `values` keeps its default."""
    sections: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {"origins": dict(origins)}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            sections.setdefault(section, {})[name] = value
        else:
            whole[section] = value
    config = Config()
    whole |= {section: msgspec.structs.replace(getattr(config, section), **fields) for section, fields in sections.items()}
    return msgspec.structs.replace(config, **whole)


def _checked(config: Config) -> Config:
    """Give the configuration back when its values fit together; raise `ConfigError` naming the keys otherwise."""
    nats = config.nats
    ways = [
        key
        for key, given in (
            ("nats.creds", nats.creds),
            ("nats.nkey", nats.nkey),
            ("nats.jwt", nats.jwt),
            ("nats.token", nats.token),
            ("nats.user", nats.user),
        )
        if given
    ]
    if len(ways) > 1:
        told = " and ".join(f"{key} ({config.origin(key)})" for key in ways)
        raise ConfigError(f"{told} are different ways to log in; keep one of them")
    if nats.password and not nats.user:
        raise ConfigError(f"nats.password ({config.origin('nats.password')}) is of no use without nats.user; set both")
    pairs = (("nats.tls_cert", nats.tls_cert, "nats.tls_key", nats.tls_key), ("nats.jwt", nats.jwt, "nats.seed", nats.seed))
    for one, first, two, second in pairs:
        if bool(first) != bool(second):
            key, other = (one, two) if first else (two, one)
            raise ConfigError(f"{key} ({config.origin(key)}) is of no use without {other}; set both")
    try:
        config.bindings()
    except ValueError as failure:
        key = "replies" if config.replies else "subjects.reply_topics"
        raise ConfigError(f"{key}: {failure} ({config.origin(key)})") from failure
    return config
