"""`taskflow doctor`: check everything that has to be right.

Where something is not, it says what to do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.dev_folder import find_dev_database
from nats_taskflow.cli.options import form_option, load_config
from nats_taskflow.cli.protocol import Json
from nats_taskflow.cli.verdict import Verdict

if TYPE_CHECKING:
    from nats_taskflow.config import Config

_SIGNS = {"ok": "✓", "warn": "!", "fail": "✗"}


@click.command(cls=SettingsCommand)
@form_option
@click.pass_context
def doctor(ctx: click.Context, /, *, output: str, **arguments: Any) -> None:
    """Look at configuration, versions, database, disk, credentials, NATS, permissions, streams, workers and clock. Changes nothing.

    Exit 0: nothing fails (there may be warnings). 1: something does; each line says what to do. 78: the configuration is refused.
    """
    from nats_taskflow.cli.doctor.broker import examine_broker
    from nats_taskflow.cli.doctor.host import examine_host
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.config.settings import LogConfig
    from nats_taskflow.observe.log import configure_logging

    config = load_config(arguments, find_dev_database())
    configure_logging(LogConfig(level="error"))
    readable = "every setting can be read, secrets by this user alone (taskflow config show --origin says where each comes from)"
    distant: list[Verdict] = []
    worker: Json = {}

    async def look() -> int:
        nonlocal distant, worker
        distant, worker = await examine_broker(config)
        return 0

    interrupted = launch(look())
    if interrupted:
        ctx.exit(interrupted)
    verdicts = [Verdict("config", "ok", readable), *examine_host(config, worker), *distant]
    _show(verdicts, config, output)
    ctx.exit(exit_codes.FAILED if any(verdict.level == "fail" for verdict in verdicts) else exit_codes.DONE)


def _show(verdicts: list[Verdict], config: Config, output: str) -> None:
    """Print the verdicts, or as JSON also the settings."""
    from nats_taskflow.cli.layout import wrap
    from nats_taskflow.cli.output import printable, terminal_width
    from nats_taskflow.config import describe_settings

    if output == "json":
        ok = all(verdict.level != "fail" for verdict in verdicts)
        settings = {key: {"value": value, "origin": origin} for key, value, origin in describe_settings(config)}
        messages = [f"{verdict.name}: {verdict.text} → {verdict.fix}" for verdict in verdicts if verdict.fix]
        report = {"ok": ok, "checks": [verdict._asdict() for verdict in verdicts], "config": settings, "messages": messages}
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    width = max(len(verdict.name) for verdict in verdicts)
    for verdict in verdicts:
        indent = " " * (width + 4)
        click.echo(f"{_SIGNS[verdict.level]} {verdict.name:<{width}}  {wrap(printable(verdict.text), terminal_width(), indent)}")
        if verdict.fix:
            click.echo(f"{indent}→ {wrap(printable(verdict.fix), terminal_width(), indent + '  ')}")
