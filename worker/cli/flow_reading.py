"""`taskflow flow list|show|history|steps`: look, and change nothing."""

from __future__ import annotations

import json
from typing import Any

import rich_click as click

from worker.cli.asking import Line, ReadCommand, pages, run, whole_id
from worker.cli.showing import Printer, mark, short, since, waits_on

_STATUSES = click.Choice(["created", "running", "waiting", "finished", "failed", "cancelled"])


@click.command("list", cls=ReadCommand)
@click.option("--status", type=_STATUSES, help="Only flows in this status.")
@click.option("--controller", metavar="ID", help="Only flows of this controller.")
@click.option("--owner", metavar="KEY", help="Only flows of this owner (agent:kate:session:main).")
@click.option("--step", metavar="LABEL", help="Only flows at this step.")
@click.option("--topic", metavar="TOPIC", help="Only flows that wait for a reply on this topic.")
@click.option("--older-than", metavar="DURATION", help="Only flows that last changed longer ago than this (1h 30m).")
@click.option("--set-aside", is_flag=True, help="Only flows whose row cannot be read.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
def list_(*, limit: int, set_aside: bool, **arguments: Any) -> None:
    """List the flows of all owners, newest first."""
    fields = {name: arguments[name] for name in ("status", "controller", "owner", "step", "topic", "older_than", "cursor")}

    async def main(line: Line, printer: Printer) -> None:
        """List them."""
        key = "set_aside" if set_aside else "flows"
        items, cursor = await pages(line, "list", key, limit, fields | ({"set_aside": True} if set_aside else {}))
        if set_aside:
            columns = {"FLOW": lambda f: short(f["flow_id"]), "OWNER": lambda f: f["owner_session_key"], "WHY": lambda f: f["why"]}
        else:
            columns = {
                "FLOW": lambda f: short(f["id"]),
                "STATUS": lambda f: mark(f["status"]) + (" (cancel requested)" if f["cancel_requested"] else ""),
                "CONTROLLER": lambda f: f["controller_id"],
                "STEP": lambda f: f["current_step"],
                "REV": lambda f: str(f["revision"]),
                "CHANGED": lambda f: since(f["updated_at"]),
                "GOAL": lambda f: f["goal"],
            }
        empty = "No flows. Start one: taskflow flow start --agent kate --controller kate/inbox --goal 'triage the inbox'"
        printer.items(items, columns, cursor=cursor, empty="No flow is set aside." if set_aside else empty)

    run(arguments, main)


@click.command(cls=ReadCommand)
@click.argument("flow")
def show(*, flow: str, **arguments: Any) -> None:
    """Show one flow: what it is, how it stands, its state."""

    async def main(line: Line, printer: Printer) -> None:
        """Show it."""
        found = (await line.ask("show", flow_id=await whole_id(line, flow)))["flow"]
        lines = [
            ("flow", found["id"]),
            ("status", mark(found["status"]) + (" (cancel requested)" if found["cancel_requested"] else "")),
            ("goal", found["goal"]),
            ("controller", found["controller_id"]),
            ("owner", found["owner_session_key"]),
            ("step", found["current_step"]),
            ("revision", str(found["revision"])),
            ("created", found["created_at"]),
            ("changed", found["updated_at"]),
            ("waits on", waits_on(found["wait"])),
            ("state", json.dumps(found["state"], ensure_ascii=False, indent=2)),
        ]
        printer.item(found, lines)

    run(arguments, main)


@click.command(cls=ReadCommand)
@click.argument("flow")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 100_000), help="At most this many entries.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
def history(*, flow: str, limit: int, cursor: str | None, **arguments: Any) -> None:
    """Show the journal of a flow, oldest first: what happened, when, and by whom."""

    async def main(line: Line, printer: Printer) -> None:
        """Show it."""
        fields = {"flow_id": await whole_id(line, flow), "cursor": cursor}
        items, following = await pages(line, "history", "events", limit, fields)
        columns = {
            "SEQ": lambda e: str(e["seq"]),
            "REV": lambda e: str(e["revision"]),
            "AT": lambda e: e["at"],
            "KIND": lambda e: e["kind"],
            "ACTOR": lambda e: e["actor"],
            "PAYLOAD": lambda e: json.dumps(e["payload"], ensure_ascii=False),
        }
        printer.items(items, columns, cursor=following, empty="Nothing more.")

    run(arguments, main)


@click.command(cls=ReadCommand)
@click.argument("flow")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 100_000), help="At most this many runs.")
def steps(*, flow: str, limit: int, **arguments: Any) -> None:
    """List the observed runs of a flow."""

    async def main(line: Line, printer: Printer) -> None:
        """List them."""
        items, cursor = await pages(line, "steps", "steps", limit, {"flow_id": await whole_id(line, flow)})
        columns = {
            "RUN": lambda s: s["run_id"],
            "STATUS": lambda s: s["status"],
            "TASK": lambda s: s["task"],
            "SESSION": lambda s: s["child_session_key"] or "—",
            "SEEN": lambda s: since(s["updated_at"]),
        }
        printer.items(items, columns, cursor=cursor, empty="No runs of this flow were observed.")

    run(arguments, main)


COMMANDS = (list_, show, history, steps)
