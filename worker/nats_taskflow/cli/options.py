"""Options that commands share: every setting as a flag.

The flag of `store.path` is `--store-path`. The options are made when a command is parsed.
"""

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
"""The sections of settings that matter to a command that only talks to the worker."""
_NATS_NAMES = {"nats.url": ("-s", "--server")}
"""What the `nats` command line calls a setting."""


class Option(click.Option):
    """An option that help shows under a heading, `panel`.

    Its `alias` works as well, and is shown nowhere.
    """

    def __init__(self, *args: Any, panel: str = OWN, alias: str = "", **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.panel = panel
        self._alias = alias

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Add the option and its alias to the parser."""
        super().add_to_parser(parser, ctx)
        if self._alias:
            parser.add_option(obj=self, opts=[self._alias], dest=self.name, action="store")


def aliased_option(name: str, alias: str, **extra: Any) -> Callable[[_F], _F]:
    """Add an option that can be typed in two ways.

    The alias is its former name, or that of a field like it.
    """
    return click.option(name, cls=Option, alias=alias, **extra)


adopt_option = click.option(
    "--adopt",
    is_flag=True,
    help="Take the consumers at the broker over from another database, for good. Stop the worker on that one first.",
)
"""A flag and no setting: what is meant for one start must not stay behind in a file."""


form_option = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to say it.")
"""For commands that ask no worker."""


def page_options(limit: int = 50, items: str = "") -> Callable[[_F], _F]:
    """Add the options of a list that comes page by page; `items` names its items."""

    def add(function: _F) -> _F:
        cursor = click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
        most = f"At most this many{items and f' {items}'}."
        return click.option("--limit", default=limit, show_default=True, type=click.IntRange(1, 100_000), help=most)(cursor(function))

    return add


@functools.cache
def setting_options(sections: tuple[str, ...] | None = None) -> tuple[click.Parameter, ...]:
    """Return `--config` and an option for every setting, or for some sections only."""
    from nats_taskflow.config import settings

    file = Option(
        ["config_file", "--config"],
        metavar="FILE",
        help="Read settings from this TOML file (env: TASKFLOW_CONFIG; else ./taskflow.toml and the usual places).",
        panel=CONNECTION if sections == CLIENT else OWN,
    )
    options = [file]
    for setting in settings():
        section = setting.key.partition(".")[0]
        if sections is None or section in sections:
            options.append(_option(setting, CONNECTION if sections == CLIENT else _PANELS[section]))
    return tuple(options)


def _option(setting: Setting, panel: str) -> Option:
    """Return the option of a setting.

    Its default is None: the configuration has the defaults, and must see that nothing was given.
    """
    return Option(
        [_name(setting.key), *_NATS_NAMES.get(setting.key, ()), setting.flag],
        metavar=_metavar(setting),
        help=setting.about.help + _remarks(setting),
        panel=panel,
    )


def _metavar(setting: Setting) -> str:
    """Return the name of the value in help."""
    from nats_taskflow.config.parsers import duration_or_off
    from nats_taskflow.units import Duration

    if setting.about.parse is duration_or_off or isinstance(setting.default, Duration):
        return "DURATION"
    if isinstance(setting.default, bool):
        return "true|false"
    return "NUMBER" if isinstance(setting.default, int) else "VALUE"


def _remarks(setting: Setting) -> str:
    """Return the default and the further variables, for help.

    Further ones are those besides `TASKFLOW_<SECTION>_<KEY>`.
    """
    default = ",".join(setting.default) if isinstance(setting.default, tuple) else str(setting.default)
    default = default.lower() if isinstance(setting.default, bool) else default
    remarks = [f"default: {default}"] if setting.default not in (None, "", ()) else []
    if setting.about.env:
        remarks.append(f"also: ${', $'.join(setting.about.env)}")
    return f" [{'; '.join(remarks)}]" if remarks else ""


def _name(key: str) -> str:
    return "setting_" + key.replace(".", "_")


def load_config(arguments: Mapping[str, Any], base: Mapping[str, SourcedValue] | None = None) -> Config:
    """Load the configuration from a command's arguments and the other sources.

    `base` has the command's own defaults.
    """
    from nats_taskflow.config import load, settings

    flags = {setting.key: arguments[_name(setting.key)] for setting in settings() if arguments.get(_name(setting.key)) is not None}
    return load(flags, config_file=arguments.get("config_file") or "", base=base)
