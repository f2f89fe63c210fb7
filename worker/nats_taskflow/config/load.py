"""Load the configuration: merge its sources, parse each value, check them all.

Precedence: flag > environment > file > NATS context (connection settings only) > `base` (a command's own, as of `dev`) > default.
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
from nats_taskflow.config.settings import Config, settings
from nats_taskflow.config.sources import Layer, SourcedValue, find_file, from_context, from_environment, from_file, from_flags
from nats_taskflow.errors import ConfigError


def load(
    flags: Mapping[str, str] | None = None,
    *,
    config_file: str = "",
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    base: Mapping[str, SourcedValue] | None = None,
) -> Config:
    """Return the configuration in force.

    Raises `ConfigError` (exit 78) with one line when it cannot be right.

    `flags` maps keys (`store.path`) to texts. `environ` and `folder` replace the process's environment and working folder.
    """
    environ = os.environ if environ is None else environ
    file = find_file(config_file, environ, folder or working_folder())
    layers: list[Layer] = [from_flags(flags or {}), from_environment(environ), from_file(file) if file else {}]
    context = _first(layers, "nats.context")
    if context and context.value:
        layers.append(_context_layer(layers, context, environ))
    layers.append(base or {})
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in settings():
        value = _first(layers, setting.key)
        if value is not None:
            values[setting.key] = _parse(setting, value, environ)
            origins[setting.key] = value.origin
    _take_lone_user_for_token(values, origins)
    config = _build(values, origins)
    _check(config)
    return config


def _first(layers: Sequence[Layer], key: str) -> SourcedValue | None:
    return next((layer[key] for layer in layers if key in layer), None)


def _context_layer(layers: Sequence[Layer], name: SourcedValue, environ: Mapping[str, str]) -> Layer:
    """Return the layer of a NATS context.

    Raises `ConfigError` where the context was named in a higher layer than another URL, which would nevertheless win over it.
    """
    if not isinstance(name.value, str):
        raise ConfigError(f"nats.context: must be text in quotes ({name.origin})")
    context = from_context(name.value, environ, name.origin)
    url = _first(layers, "nats.url")
    above = next(at for at, layer in enumerate(layers) if "nats.context" in layer)
    if (
        url
        and "nats.url" in context
        and url.value != context["nats.url"].value
        and not any("nats.url" in layer for layer in layers[: above + 1])
    ):
        raise ConfigError(f"nats.url ({url.origin}) would win over the NATS context {name.value!r} ({name.origin}); remove one of the two")
    return context


def _parse(setting: Setting, source: SourcedValue, environ: Mapping[str, str]) -> Any:
    """Parse a raw value.

    An empty text overrides lower layers where the default is nothing.
    """
    if source.value == "" and setting.default in (None, ""):
        return setting.default
    try:
        value = setting.about.parse(RawValue(source.value, source.text, environ))
    except ValueError as failure:
        problem = " ".join(str(failure).split())
        raise ConfigError(f"{setting.key}: {problem} ({source.origin})") from failure
    if source.exposed and is_written_out(value):
        raise ConfigError(f"{setting.key}: this is a secret, and {source.exposed} ({source.origin})")
    return value


def _take_lone_user_for_token(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Take `$NATS_USER` without a password as a token.

    The nats CLI does ("Username or Token").
    """
    if origins.get("nats.user") == "environment NATS_USER" and not values.get("nats.password") and not values.get("nats.token"):
        values["nats.token"], origins["nats.token"] = Secret(text=values.pop("nats.user")), origins.pop("nats.user")


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """Build the tree; a setting that is not in `values` keeps its default."""
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {"origins": dict(origins)}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            sections.setdefault(section, {})[name] = value
        else:
            top[section] = value
    config = Config()
    top |= {section: msgspec.structs.replace(getattr(config, section), **fields) for section, fields in sections.items()}
    return msgspec.structs.replace(config, **top)


def _check(config: Config) -> None:
    """Raise `ConfigError`, naming the keys, where values contradict each other."""
    nats = config.nats
    logins = [
        key
        for key, value in (
            ("nats.creds", nats.creds),
            ("nats.nkey", nats.nkey),
            ("nats.jwt", nats.jwt),
            ("nats.token", nats.token),
            ("nats.user", nats.user),
        )
        if value
    ]
    if len(logins) > 1:
        keys = " and ".join(f"{key} ({config.origin(key)})" for key in logins)
        raise ConfigError(f"{keys} are different ways to log in; keep one of them")
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
