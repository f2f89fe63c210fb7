"""Know every setting: its type and default (`tree`), where its value came from (`sources`), and whether all of them make sense (`load`).

`load()` gives a frozen `Config`; everything else in the worker takes that tree, or one of its sections, and asks nobody else.
"""

from __future__ import annotations

from nats_taskflow.config.load import load
from nats_taskflow.config.secrets import Secret, Url
from nats_taskflow.config.setting import Setting
from nats_taskflow.config.show import describe_settings
from nats_taskflow.config.sources import SourcedValue
from nats_taskflow.config.tree import (
    Config,
    EngineConfig,
    HttpConfig,
    LogConfig,
    MetricsConfig,
    NatsConfig,
    StoreConfig,
    StreamConfig,
    SubjectsConfig,
    settings,
)

__all__ = [
    "Config",
    "EngineConfig",
    "HttpConfig",
    "LogConfig",
    "MetricsConfig",
    "NatsConfig",
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
