"""`taskflow check`: the worker's state for a monitor.

It prints for Nagios or Prometheus, as JSON, or as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click
from click.exceptions import Exit

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.exit_codes import CommandFailed
from nats_taskflow.cli.output import Printer
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.session import run
from nats_taskflow.cli.verdict import FIGURES
from nats_taskflow.errors import Refusal

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


class Reading(NamedTuple):
    """A figure's value, with its limits for a warning and for critical (None: never)."""

    value: int
    warning: int | None = None
    critical: int | None = None

    @property
    def level(self) -> int:
        """The figure's exit code: `OK`, `WARNING` or `CRITICAL`."""
        if self.critical is not None and self.value >= self.critical:
            return CRITICAL
        return WARNING if self.warning is not None and self.value >= self.warning else OK


Readings = Mapping[str, Reading]


def _limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the limits of each figure."""
    for figure in reversed(FIGURES):
        name, limits = f"--{figure.name.replace('_', '-')}", (figure.warning, figure.critical)
        option = click.option(name, nargs=2, type=int, default=limits, show_default=True, help=f"Warning and critical: {figure.plural}.")
        function = option(function)
    return function


@click.command(cls=ReadCommand)
@click.option(
    "--format",
    "form",
    type=click.Choice(["nagios", "json", "prometheus", "text"]),
    default="text",
    show_default=True,
    help="How; -o json is --format json, -o none says nothing.",
)
@_limit_options
def check(*, form: str, **arguments: Any) -> None:
    """Say whether it is well. Exit 0 ok, 1 warning, 2 critical, 3 unknown (nobody answers), as Nagios has it."""
    quiet = arguments["output"] == "none"
    form = "json" if form == "text" and arguments["output"] in ("json", "jsonl") else form

    def report(level: int, readings: Readings, why: str) -> None:
        if not quiet:
            click.echo(_report(form, level, readings, why))

    async def main(session: OperatorSession, _printer: Printer) -> int:
        """Ask for the figures, and judge them."""
        stats = await session.ask("stats")
        readings = _readings(stats, arguments)
        level = _level(readings, stats["worker"])
        report(level, readings, _troubles(readings, stats))
        return level

    try:
        run(arguments, main)
    except (CommandFailed, Refusal) as failure:
        report(UNKNOWN, {}, str(failure))
        if not quiet and form != "prometheus":
            raise Exit(UNKNOWN) from failure
        raise CommandFailed(str(failure), UNKNOWN) from failure


def _readings(stats: Json, limits: Mapping[str, Any]) -> Readings:
    judged = {figure.name: Reading(figure.value(stats), *limits[figure.name]) for figure in FIGURES}
    return judged | {"waiting": Reading(stats["flows"]["waiting"]), "held": Reading(stats["held"])}


def _level(readings: Readings, worker: Mapping[str, Any]) -> int:
    if worker.get("not_ready") or worker.get("connected") is False:
        return CRITICAL
    return max(reading.level for reading in readings.values())


def _troubles(readings: Readings, stats: Json) -> str:
    troubles = [figure.trouble(stats) for figure in FIGURES if readings[figure.name].level != OK]
    return ", ".join([*troubles, *stats["worker"].get("not_ready", [])])


def _report(form: str, level: int, readings: Readings, why: str) -> str:
    """Format the verdict for the monitor.

    There are no readings where no worker answered.
    """
    values = {name: reading.value for name, reading in readings.items()}
    if form == "json":
        return json.dumps({"level": _WORDS[level].lower(), "why": why, "figures": values})
    if form == "prometheus":
        gauges = {"up": 1 if readings else 0, "level": level} | values
        return "\n".join(f"# TYPE taskflow_check_{name} gauge\ntaskflow_check_{name} {value:g}" for name, value in gauges.items())
    line = f"TASKFLOW {_WORDS[level]}" + (f" - {why}" if why else " - all is well")
    if form == "nagios" and readings:
        shown = (
            f"{name}={value:g};{'' if warning is None else warning};{'' if critical is None else critical}"
            for name, (value, warning, critical) in readings.items()
        )
        return f"{line} | {' '.join(shown)}"
    return line
