"""`taskflow waits`: who waits for what, since when, until when."""

from __future__ import annotations

from typing import Any

import rich_click as click

from worker.cli.asking import Line, ReadCommand, pages, run
from worker.cli.following import watch_options, watched
from worker.cli.showing import Printer, short, since, until, waits_on


@click.command(cls=ReadCommand)
@click.option("--topic", metavar="TOPIC", help="Only waits for a reply on this topic.")
@click.option("--controller", metavar="ID", help="Only flows of this controller.")
@click.option("--owner", metavar="KEY", help="Only flows of this owner (agent:kate:session:main).")
@click.option("--step", metavar="LABEL", help="Only flows at this step.")
@click.option("--older-than", metavar="DURATION", help="Only those that wait longer than this (10m).")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@watch_options
def waits(*, limit: int, watch: float | None, count: int | None, **arguments: Any) -> None:
    """Show who waits for what, since when and until when; the longest-waiting first."""
    fields = {name: arguments[name] for name in ("topic", "controller", "owner", "step", "older_than", "cursor")}

    async def look(line: Line, printer: Printer) -> None:
        """Show them."""
        items, cursor = await pages(line, "waits", "waits", limit, fields)
        columns = {
            "FLOW": lambda w: short(w["flow_id"]),
            "CONTROLLER": lambda w: w["controller_id"],
            "STEP": lambda w: w["current_step"],
            "SINCE": lambda w: since(w["since"]),
            "DUE": _due,
            "WAITS ON": lambda w: waits_on(w["wait"]),
        }
        printer.items(items, columns, cursor=cursor, empty="Nothing waits. Park a flow: taskflow flow wait FLOW --manual 'approve?'")
        if items and printer.for_people:
            stats = await line.ask("stats")
            overdue, held = stats["waits"]["overdue"], stats["held"]
            known = f"{stats['flows']['waiting']} waiting · {overdue} overdue · {held} held replies nobody waits for"
            printer.note(known + (" (taskflow held list)" if held else ""))

    run(arguments, watched(look, watch, count))


def _due(wait: dict[str, Any]) -> str:
    """Say until when, and what then."""
    if wait["cancel_requested"]:
        return "cancel requested"
    then = (wait["wait"] or {}).get("on_timeout")
    return until(wait["until"]) + (f" → {then}" if then and wait["until"] else "")
