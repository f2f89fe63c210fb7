"""Show the configuration to people: every key, its masked value, its origin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from nats_taskflow.config.secrets import Secret, Url
from nats_taskflow.config.settings import Config, settings
from nats_taskflow.wire.delegates import DelegateOwners
from nats_taskflow.wire.reply_bindings import Binding


def describe_settings(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield (key, value as TOML, origin) for every setting. Secrets are masked."""
    for setting in settings():
        value = config.value(setting.key)
        yield setting.key, to_toml(value, setting.about.absent), config.origin(setting.key)


def to_toml(value: Any, absent: str = "") -> str:
    """Return a value as TOML."""
    match value:
        case None:
            return json.dumps(absent)
        case bool():
            return "true" if value else "false"
        case Secret():
            return json.dumps(str(value))
        case Url():
            return json.dumps(value.shown)
        case tuple():
            return "[" + ", ".join(to_toml(item) for item in value) + "]"
        case Binding() | DelegateOwners():
            return msgspec.json.encode(value).decode()
        case int() if type(value) is int:
            return str(value)
        case _:
            return json.dumps(str(value), ensure_ascii=False)
