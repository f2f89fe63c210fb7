"""Offer every setting as a flag: `--store-path` for `store.path`, built from the tree of settings when a command is parsed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.command import CONNECTION, OWN, Option, TaskflowCommand

if TYPE_CHECKING:
    from nats_taskflow.config import Config, Setting, SourcedValue

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


adopt_option = click.option(
    "--adopt",
    is_flag=True,
    help="Take the consumers at the broker over from another database, for good. Stop the worker on that one first.",
)
"""A flag and no setting: what is meant for one start must not stay behind in a file."""


class SettingsCommand(TaskflowCommand):
    """A command that takes `--config` and a flag for every setting; its callback gets them as keyword arguments.

    `sections`: only the settings of these sections; None: all.
    """

    sections: tuple[str, ...] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give the command's own options, then the settings. Called when parsing or helping, so that importing stays cheap."""
        *own, help_option = super().get_params(ctx)
        return [*own, *self.shared_options(), help_option, *_setting_options(self.sections)]

    def shared_options(self) -> list[click.Parameter]:
        """Give the options that all commands of the kind have."""
        return []


def connection_options() -> tuple[click.Parameter, ...]:
    """Give the options of the connection, which every command has that talks to the worker."""
    return _setting_options(CLIENT)


@functools.cache
def _setting_options(sections: tuple[str, ...] | None = None) -> tuple[click.Parameter, ...]:
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

    if setting.about.parse is duration_or_off or isinstance(setting.default, Duration):
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
