"""`taskflow run`: the worker in the foreground."""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.options import adopt_option, load_config


@click.command(cls=SettingsCommand)
@adopt_option
@click.pass_context
def run(ctx: click.Context, /, *, adopt: bool, **arguments: Any) -> None:
    """Run the worker until it is told to stop (SIGTERM, Ctrl-C).

    Flags win over environment variables, these over the file, the file over the NATS context. Prints one JSON line when it is ready.
    Every flag has a variable and a key in the file: --store-path, TASKFLOW_STORE_PATH, and path in [store].
    Durations are written 500ms, 15m, 1h 30m, 30d.
    """
    config = load_config(arguments)
    from nats_taskflow.cli.light_imports import import_structlog

    import_structlog()
    from nats_taskflow import app
    from nats_taskflow.cli.runtime import launch

    ctx.exit(launch(app.run(config, adopt=adopt)))
