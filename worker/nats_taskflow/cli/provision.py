"""`taskflow provision`: make the streams and consumers.

The worker then needs no permission for that.
"""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.options import adopt_option, load_config


@click.command(cls=SettingsCommand)
@click.option("--database", metavar="ID", help="Write down which database the consumers serve, for a worker that may not do so itself.")
@click.option(
    "--set-limits",
    is_flag=True,
    help="Give streams that are there max_age and sizes of the settings, too. What is older is deleted, decided or not.",
)
@adopt_option
@click.pass_context
def provision(ctx: click.Context, /, *, database: str | None, set_limits: bool, adopt: bool, **arguments: Any) -> None:
    """Make what the worker needs in JetStream, then end: the streams and the durable consumers, as the settings say.

    Run it with credentials that may do so; the worker then runs with credentials that may not. Safe to repeat: what is there is checked,
    and what would break a promise is refused (exit 78). It touches no database.
    """
    config = load_config(arguments)
    from nats_taskflow.cli.light_imports import import_structlog

    import_structlog()
    from nats_taskflow import app
    from nats_taskflow.cli.runtime import launch

    ctx.exit(launch(app.provision(config, database, adopt=adopt, set_limits=set_limits)))
