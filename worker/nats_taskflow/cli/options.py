"""Offer every setting as a flag: `--store-path` for `store.path`, built from the tree of settings when a command is parsed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from nats_taskflow.config import Config, Setting, SourcedValue

_F = TypeVar("_F", bound=Callable[..., Any])
OWN, CONNECTION = "Options", "Connection"
_PANELS = {
    "nats": CONNECTION,
    "store": "Store",
    "engine": "Engine",
    "subjects": "Subjects and replies",
    "replies": "Subjects and replies",
    "delegates": "Subjects and replies",
    "http": "Health, metrics, traces",
    "metrics": "Health, metrics, traces",
    "otel": "Health, metrics, traces",
    "log": "Log",
    "stream": "Streams",
    "quotas": "Quotas",
}


CLIENT = ("nats", "subjects")
"""The settings that matter to a command that only talks to the worker: its connection."""
_LETTERS = {"nats.url": ("-s", "--server")}
"""What the `nats` command line calls a setting."""


class Option(click.Option):
    """An option that help shows under a heading of its own. An alias works as its name does, and is shown nowhere."""

    def __init__(self, *args: Any, panel: str = OWN, alias: str = "", **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.panel = panel
        self._alias = alias

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Have the parser know the alias, too."""
        super().add_to_parser(parser, ctx)
        if self._alias:
            parser.add_option(obj=self, opts=[self._alias], dest=self.name, action="store")


def aliased_option(name: str, alias: str, **extra: Any) -> Callable[[_F], _F]:
    """Add an option that takes a value under two names: its own, and one that was its name before or is that of a field like it."""
    return click.option(name, cls=Option, alias=alias, **extra)


adopt_option = click.option(
    "--adopt",
    is_flag=True,
    help="Take the consumers at the broker over from another database, for good. Stop the worker on that one first.",
)
"""A flag and no setting: what is meant for one start must not stay behind in a file."""


@functools.cache
def setting_options(sections: tuple[str, ...] | None = None) -> tuple[click.Parameter, ...]:
    """Make the options of all settings, or of those of some sections."""
    from nats_taskflow.config import settings

    file = Option(
        ["config_file", "--config"],
        metavar="FILE",
        help="Read settings from this TOML file (env: TASKFLOW_CONFIG; else ./taskflow.toml and the usual places).",
        panel=CONNECTION if sections == CLIENT else OWN,
    )
    wanted = [setting for setting in settings() if sections is None or setting.key.partition(".")[0] in sections]
    return (file, *(_option(setting, CONNECTION if sections == CLIENT else _PANELS[setting.key.partition(".")[0]]) for setting in wanted))


def _option(setting: Setting, panel: str) -> click.Parameter:
    """Make the option of one setting. Its default stays None: the configuration knows defaults, and that nothing was given."""
    return Option(
        [_name(setting.key), *_LETTERS.get(setting.key, ()), setting.flag],
        metavar=_metavar(setting),
        help=setting.about.help + _remarks(setting),
        panel=panel,
    )


def _metavar(setting: Setting) -> str:
    """Say what kind of value the flag takes."""
    from nats_taskflow.config.parsers import duration_or_off
    from nats_taskflow.units import Duration

    if setting.about.read is duration_or_off or isinstance(setting.default, Duration):
        return "DURATION"
    if isinstance(setting.default, bool):
        return "true|false"
    return "NUMBER" if isinstance(setting.default, int) else "VALUE"


def _remarks(setting: Setting) -> str:
    """Give the default, and the variables besides `TASKFLOW_<SECTION>_<KEY>`."""
    default = ",".join(setting.default) if isinstance(setting.default, tuple) else str(setting.default)
    default = default.lower() if isinstance(setting.default, bool) else default
    told = [f"default: {default}"] if setting.default not in (None, "", ()) else []
    if setting.about.env:
        told.append(f"also: ${', $'.join(setting.about.env)}")
    return f" [{'; '.join(told)}]" if told else ""


def _name(key: str) -> str:
    """Give the name of a setting among a command's arguments."""
    return "setting_" + key.replace(".", "_")


def load_config(arguments: Mapping[str, Any], base: Mapping[str, SourcedValue] | None = None) -> Config:
    """Load the configuration that the arguments of a `SettingsCommand` ask for; `base` is what the command presumes."""
    from nats_taskflow.config import load, settings

    flags = {setting.key: arguments[_name(setting.key)] for setting in settings() if arguments.get(_name(setting.key)) is not None}
    return load(flags, config_file=arguments.get("config_file") or "", base=base)
