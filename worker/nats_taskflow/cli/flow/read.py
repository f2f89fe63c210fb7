"""`taskflow flow list|show|history|steps`: look, and change nothing."""

from __future__ import annotations

import json
from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.identity import agent_options
from nats_taskflow.cli.output import Printer, ago, format_time, format_wait, mark_flow, short_id, since
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.selection import filter_options, find_flow_id, read_filter
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.cli.watch import follow_flow, repeat, watch_options

_NONE = "No flows. Start one: taskflow flow start --agent kate --controller-id kate/inbox --goal 'triage the inbox'"


@click.command("list", cls=ReadCommand)
@filter_options
@click.option("--set-aside", is_flag=True, help="Only flows whose row cannot be read.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@watch_options
@agent_options
def list_(*, limit: int, set_aside: bool, watch: float | None, count: int | None, **arguments: Any) -> None:
    """List the flows of all owners, newest first."""
    by = read_filter(arguments)
    empty = "No flow is like that." if by else _NONE
    if set_aside:
        empty = "No flow is set aside."
    fields = by | {"cursor": arguments["cursor"]}

    async def look(line: OperatorSession, printer: Printer) -> None:
        """List them."""
        key = "set_aside" if set_aside else "flows"
        items, cursor = await collect_pages(line, "list", key, limit, fields | ({"set_aside": True} if set_aside else {}))
        if set_aside:
            columns = {"FLOW": lambda f: short_id(f["flow_id"]), "OWNER": lambda f: f["owner_session_key"], "WHY": lambda f: f["why"]}
        else:
            columns = {
                "FLOW": lambda f: short_id(f["id"]),
                "STATUS": mark_flow,
                "CONTROLLER": lambda f: f["controller_id"],
                "STEP": lambda f: f["current_step"],
                "REV": lambda f: str(f["revision"]),
                "CHANGED": lambda f: since(f["updated_at"]),
                "GOAL": lambda f: f["goal"],
            }
        printer.items(items, columns, cursor=cursor, empty=empty)

    run(arguments, repeat(look, watch, count))


@click.command(cls=ReadCommand)
@click.argument("flow")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens to it until it ends; Ctrl-C ends earlier.")
@agent_options
def show(*, flow: str, follow: bool, **arguments: Any) -> None:
    """Show one flow: what it is, how it stands, its state."""

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Show it, and what follows."""
        flow_id = await find_flow_id(line, flow)
        if follow:
            await follow_flow(line, flow_id, lambda found: _said(found, printer), printer)
        else:
            _said((await line.ask("show", flow_id=flow_id))["flow"], printer)

    run(arguments, main)


def _said(found: Json, printer: Printer) -> None:
    """Say how a flow is."""
    lines = [
        ("flow", found["id"]),
        ("status", mark_flow(found)),
        ("goal", found["goal"]),
        ("controller", found["controller_id"]),
        ("owner", found["owner_session_key"]),
        ("step", found["current_step"]),
        ("revision", str(found["revision"])),
        ("created", ago(found["created_at"])),
        ("changed", ago(found["updated_at"])),
        ("waits on", format_wait(found["wait"])),
        ("state", json.dumps(found["state"], ensure_ascii=False, indent=2)),
    ]
    printer.item(found, lines)


@click.command(cls=ReadCommand)
@click.argument("flow")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 100_000), help="At most this many entries.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@click.option("--newest", is_flag=True, help="The newest entries first.")
@agent_options
def history(*, flow: str, limit: int, cursor: str | None, newest: bool, **arguments: Any) -> None:
    """Show the journal of a flow, oldest first: what happened, when, and by whom."""

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Show it."""
        fields = {"flow_id": await find_flow_id(line, flow), "cursor": cursor, "newest": newest}
        items, following = await collect_pages(line, "history", "events", limit, fields)
        columns = {
            "SEQ": lambda e: str(e["seq"]),
            "REV": lambda e: str(e["revision"]),
            "AT": lambda e: format_time(e["at"]),
            "KIND": lambda e: e["kind"],
            "ACTOR": lambda e: e["actor"],
            "PAYLOAD": lambda e: json.dumps(e["payload"], ensure_ascii=False),
        }
        printer.items(items, columns, cursor=following, empty="Nothing more.")

    run(arguments, main)


@click.command(cls=ReadCommand)
@click.argument("flow")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 100_000), help="At most this many runs.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
@agent_options
def steps(*, flow: str, limit: int, cursor: str | None, **arguments: Any) -> None:
    """List the observed runs of a flow."""

    async def main(line: OperatorSession, printer: Printer) -> None:
        """List them."""
        items, following = await collect_pages(line, "steps", "steps", limit, {"flow_id": await find_flow_id(line, flow), "cursor": cursor})
        columns = {
            "RUN": lambda s: s["run_id"],
            "STATUS": lambda s: s["status"],
            "TASK": lambda s: s["task"],
            "SESSION": lambda s: s["child_session_key"] or "—",
            "SEEN": lambda s: since(s["updated_at"]),
        }
        printer.items(items, columns, cursor=following, empty="No runs of this flow were observed.")

    run(arguments, main)


COMMANDS = (list_, show, history, steps)
