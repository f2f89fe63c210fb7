"""`taskflow check`: is it well, for a monitor: Nagios, Prometheus, JSON, or text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from click.exceptions import Exit

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.exit_codes import Failed
from nats_taskflow.cli.output import Printer
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.session import run
from nats_taskflow.errors import Refusal
from nats_taskflow.text import counted

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
_WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_SPELLED = {
    "overdue": ("overdue flow",),
    "unpublished": ("event not published", "events not published"),
    "dead_letters": ("dead letter",),
    "set_aside": ("flow set aside", "flows set aside"),
}
Figures = dict[str, tuple[float, float | None, float | None]]
"""Name → value, and from where on it is a warning, or critical (None: never)."""


@click.command(cls=ReadCommand)
@click.option(
    "--format",
    "form",
    type=click.Choice(["nagios", "json", "prometheus", "text"]),
    default="text",
    show_default=True,
    help="How; -o json is --format json, -o none says nothing.",
)
@click.option(
    "--overdue", nargs=2, type=int, default=(1, 100), show_default=True, help="Warning and critical: flows that time is late for."
)
@click.option(
    "--unpublished", nargs=2, type=int, default=(1000, 100_000), show_default=True, help="Warning and critical: events not published."
)
@click.option("--dead-letters", nargs=2, type=int, default=(1, 10_000), show_default=True, help="Warning and critical: dead letters.")
@click.option("--set-aside", nargs=2, type=int, default=(1, 10), show_default=True, help="Warning and critical: flows set aside.")
def check(*, form: str, **arguments: Any) -> None:
    """Say whether it is well. Exit 0 ok, 1 warning, 2 critical, 3 unknown (nobody answers), as Nagios has it."""
    limits: Mapping[str, tuple[int, int]] = {name: arguments[name] for name in ("overdue", "unpublished", "dead_letters", "set_aside")}
    said = arguments["output"] != "none"
    form = "json" if form == "text" and arguments["output"] in ("json", "jsonl") else form

    async def main(line: OperatorSession, _printer: Printer) -> int:
        """Ask and judge."""
        found = await line.ask("stats")
        figures = _figures(found, limits)
        level = _level(figures, found["worker"])
        click.echo(_said(form, level, figures, _troubles(figures, found["worker"])) if said else "", nl=said)
        return level

    try:
        run(arguments, main)
    except (Failed, Refusal) as failed:
        click.echo(_said(form, UNKNOWN, {}, str(failed)) if said else "", nl=said)
        if said and form != "prometheus":
            raise Exit(UNKNOWN) from failed
        raise Failed(str(failed), UNKNOWN) from failed


def _figures(found: Mapping[str, Any], limits: Mapping[str, tuple[int, int]]) -> Figures:
    """Return the figures with their limits."""
    values = {
        "overdue": found["waits"]["overdue"],
        "unpublished": sum(found["unpublished"].values()),
        "dead_letters": found["dead_letters"],
        "set_aside": found["set_aside"],
    }
    judged: Figures = {name: (value, *limits[name]) for name, value in values.items()}
    return judged | {"waiting": (found["flows"]["waiting"], None, None), "held": (found["held"], None, None)}


def _level(figures: Figures, worker: Mapping[str, Any]) -> int:
    """Return how bad it is."""
    critical = any(limit is not None and value >= limit for value, _, limit in figures.values())
    if critical or worker.get("not_ready") or worker.get("connected") is False:
        return CRITICAL
    return WARNING if any(limit is not None and value >= limit for value, limit, _ in figures.values()) else OK


def _troubles(figures: Figures, worker: Mapping[str, Any]) -> str:
    """Say what is not well."""
    bad = [counted(int(value), *_SPELLED[name]) for name, (value, limit, _) in figures.items() if limit is not None and value >= limit]
    return ", ".join([*bad, *worker.get("not_ready", [])])


def _said(form: str, level: int, figures: Figures, why: str) -> str:
    """Spell it for the monitor. Without figures nobody could be asked."""
    if form == "json":
        return json.dumps({"level": _WORDS[level].lower(), "why": why, "figures": {name: value for name, (value, _, _) in figures.items()}})
    if form == "prometheus":
        shown = {"up": 1.0 if figures else 0.0, "level": float(level)} | {name: value for name, (value, _, _) in figures.items()}
        return "\n".join(f"# TYPE taskflow_check_{name} gauge\ntaskflow_check_{name} {value:g}" for name, value in shown.items())
    line = f"TASKFLOW {_WORDS[level]}" + (f" - {why}" if why else " - all is well")
    if form == "nagios" and figures:
        spelled = (
            f"{name}={value:g};{'' if warn is None else warn};{'' if bad is None else bad}" for name, (value, warn, bad) in figures.items()
        )
        return f"{line} | {' '.join(spelled)}"
    return line
