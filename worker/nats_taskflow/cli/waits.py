"""`taskflow waits`: who waits for what, since when, until when."""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.identity import agent_options
from nats_taskflow.cli.options import page_options
from nats_taskflow.cli.output import Printer, format_wait, short_id, since, until
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.selection import wait_options
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.cli.watch import repeat, watch_options
from nats_taskflow.text import counted

_FILTERS = ("topic", "correlation_id", "kind", "controller", "owner", "step", "older_than", "due_within")


@click.command(cls=ReadCommand)
@wait_options
@click.option("--older-than", metavar="DURATION", help="Only those that wait longer than this (10m).")
@click.option("--due-within", metavar="DURATION", help="Only those that a timer or deadline acts on within this (10m), or should have.")
@page_options()
@watch_options
@agent_options
def waits(*, limit: int, watch: float | None, count: int | None, **arguments: Any) -> None:
    """Show who waits for what, since when and until when; the longest-waiting first."""
    fields = {name: arguments[name] for name in _FILTERS}
    is_filtered = any(value is not None for value in fields.values())
    fields["cursor"] = arguments["cursor"]

    async def look(session: OperatorSession, printer: Printer) -> None:
        """Show a page, and what matters besides."""
        items, cursor = await collect_pages(session, "waits", "waits", limit, fields)
        empty = "No wait is like that." if is_filtered else "Nothing waits. Park a flow: taskflow flow wait FLOW --manual 'approve?'"
        printer.items(items, COLUMNS, cursor=cursor, empty=empty)
        if items and printer.for_people and arguments["as_agent"] is None:
            stats = await session.ask("stats")
            overdue, held = stats["waits"]["overdue"], counted(stats["held"], "held reply", "held replies")
            summary = f"{stats['flows']['waiting']:,} waiting · {overdue:,} overdue · {held} nobody waits for"
            printer.note(summary + (" (taskflow held list)" if stats["held"] else ""))

    run(arguments, repeat(look, watch, count))


def _due(wait: Json) -> str:
    """Return until when it waits, and what happens then."""
    if wait.get("cancel_requested"):
        return "cancel requested"
    then = (wait["wait"] or {}).get("on_timeout")
    return until(wait["until"]) + (f" → {then}" if then and wait["until"] else "")


COLUMNS = {
    "FLOW": lambda w: short_id(w["flow_id"]),
    "CONTROLLER": lambda w: w["controller_id"],
    "STEP": lambda w: w["current_step"],
    "SINCE": lambda w: since(w["since"]),
    "DUE": _due,
    "WAITS ON": lambda w: format_wait(w["wait"]),
}
