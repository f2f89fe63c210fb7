"""`taskflow context`: the connection contexts of the `nats` CLI (NATS ADR-21).

They are shown as this program reads them.
"""

from __future__ import annotations

import json
import os

import click

from nats_taskflow.cli.command import Group
from nats_taskflow.cli.options import form_option


@click.group(cls=Group)
def context() -> None:
    """See the contexts of the `nats` CLI. Use one with --nats-context NAME, or NATS_CONTEXT."""


@context.command()
@form_option
def ls(*, output: str) -> None:
    """List the contexts; * marks the one that `nats context select` chose."""
    from nats_taskflow.config.nats_contexts import list_contexts

    names, selected = list_contexts(os.environ)
    if output == "json":
        click.echo(json.dumps({"items": [{"name": name, "selected": name == selected} for name in names], "next_cursor": None}))
        return
    for name in names:
        click.echo(f"{'*' if name == selected else ' '} {name}")
    if not names:
        click.echo("There are no contexts; `nats context add NAME` makes one.", err=True)


@context.command()
@click.argument("name")
@form_option
def show(*, name: str, output: str) -> None:
    """Show what context NAME sets, and which setting of ours each becomes; secrets are masked."""
    from nats_taskflow.config.nats_contexts import read_context
    from nats_taskflow.errors import ConfigError

    try:
        settings, _ = read_context(name, os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    shown = {key: _mask(key, value) for key, value in settings.items()}
    if output == "json":
        click.echo(json.dumps(shown))
        return
    width = max(map(len, shown), default=0)
    for key, value in shown.items():
        click.echo(f"{key:<{width}} = {json.dumps(value, ensure_ascii=False)}")


def _mask(key: str, value: str) -> str:
    """Return a value without secrets."""
    from nats_taskflow.bus.nats.options import public_address

    if key in ("nats.password", "nats.token"):
        return "********"
    return ",".join(public_address(url) for url in value.split(",")) if key == "nats.url" else value
