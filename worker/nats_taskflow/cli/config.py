"""`taskflow config`: the settings in force, their origins, and their errors."""

from __future__ import annotations

import json
from typing import Any

import click

from nats_taskflow.cli.command import Group, SettingsCommand
from nats_taskflow.cli.options import form_option, load_config


@click.group(cls=Group)
def config() -> None:
    """Show or check the settings that `taskflow run` would use, without starting anything."""


@config.command(cls=SettingsCommand)
@click.option("--origin", is_flag=True, help="Also say where each value came from.")
@form_option
def show(*, origin: bool, output: str, **arguments: Any) -> None:
    """Print every setting as it is in force, in the form of the configuration file; secrets are masked."""
    from nats_taskflow.config import describe_settings

    if output == "json":
        settings = {key: {"value": value, "origin": source} for key, value, source in describe_settings(load_config(arguments))}
        click.echo(json.dumps(settings, ensure_ascii=False))
        return
    rows = [(f"{key} = {value}", source) for key, value, source in describe_settings(load_config(arguments))]
    width = max(len(line) for line, _ in rows)
    for line, source in rows:
        click.echo(f"{line:<{min(width, 60)}}  # {source}" if origin else line)


@config.command(cls=SettingsCommand)
def validate(**arguments: Any) -> None:
    """Exit 0 when the settings are right; otherwise say in one line which is not, and exit 78."""
    sources = set(load_config(arguments).origins.values()) - {"default"}
    click.echo(f"The configuration is valid ({', '.join(sorted(sources)) or 'every setting at its default'}).")


@config.command()
@click.argument("file", default="taskflow.toml", type=click.Path(dir_okay=False))
def init(file: str) -> None:
    """Write FILE with every setting at its default, commented out and explained. Never overwrites."""
    from pathlib import Path

    from nats_taskflow.config.template import template
    from nats_taskflow.errors import ConfigError

    try:
        with Path(file).open("x", encoding="utf-8") as out:
            out.write(template())
    except FileExistsError as error:
        raise ConfigError(f"{file} exists and is left as it is: name another file, or move it away") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    click.echo(f"{file} is written; take the # away from what you change, then: taskflow config validate --config {file}")
