"""The settings, read once at the start into a frozen tree.

Begin with `settings`, which lists every setting; `setting` says what one consists of, `parsers` how its value is read. `load()` merges the
`sources` (flags, environment, file, NATS context), parses and checks. Everything else takes the `Config`, or a section of it, and asks
nobody else. May import `wire` (subjects and bindings are settings) and the base modules.
Inside, import the module, never this face.
"""

from __future__ import annotations

from nats_taskflow.config.load import load
from nats_taskflow.config.secrets import Secret, Url
from nats_taskflow.config.setting import Setting
from nats_taskflow.config.settings import (
    Config,
    EngineConfig,
    HttpConfig,
    LogConfig,
    MetricsConfig,
    NatsConfig,
    OtelConfig,
    QuotaConfig,
    StoreConfig,
    StreamConfig,
    SubjectsConfig,
    settings,
)
from nats_taskflow.config.show import describe_settings
from nats_taskflow.config.sources import SourcedValue
from nats_taskflow.wire.delegates import DelegateOwners
from nats_taskflow.wire.reply_bindings import Binding

__all__ = [
    "Binding",
    "Config",
    "DelegateOwners",
    "EngineConfig",
    "HttpConfig",
    "LogConfig",
    "MetricsConfig",
    "NatsConfig",
    "OtelConfig",
    "QuotaConfig",
    "Secret",
    "Setting",
    "SourcedValue",
    "StoreConfig",
    "StreamConfig",
    "SubjectsConfig",
    "Url",
    "describe_settings",
    "load",
    "settings",
]
