"""`taskflow flow list|show|history|steps`: look at flows."""

from __future__ import annotations

import json
from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.identity import agent_options
from nats_taskflow.cli.options import page_options
from nats_taskflow.cli.output import Printer, ago, format_time, format_wait, mark_flow, short_id, since
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.selection import filter_options, find_flow_id, read_filter
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.cli.watch import follow_flow, repeat, watch_options

_EMPTY = "No flows. Start one: taskflow flow start --agent kate --controller-id kate/inbox --goal 'triage the inbox'"


@click.command("list", cls=ReadCommand)
@filter_options
@click.option("--set-aside", is_flag=True, help="Only flows whose row cannot be read.")
@page_options()
@watch_options
@agent_options
def list_(*, limit: int, set_aside: bool, watch: float | None, count: int | None, **arguments: Any) -> None:
    """List the flows of all owners, newest first."""
    chosen = read_filter(arguments)
    empty = "No flow is set aside." if set_aside else "No flow is like that." if chosen else _EMPTY
    fields = chosen | {"cursor": arguments["cursor"]}

    async def look(session: OperatorSession, printer: Printer) -> None:
        """List the flows of one look."""
        key = "set_aside" if set_aside else "flows"
        items, cursor = await collect_pages(session, "list", key, limit, fields | ({"set_aside": True} if set_aside else {}))
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

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Show the flow, and follow it if that was asked for."""
        flow_id = await find_flow_id(session, flow)
        if follow:
            await follow_flow(session, flow_id, lambda flow: _print_flow(flow, printer), printer)
        else:
            _print_flow((await session.ask("show", flow_id=flow_id))["flow"], printer)

    run(arguments, main)


def _print_flow(flow: Json, printer: Printer) -> None:
    """Print a flow whole."""
    fields = [
        ("flow", flow["id"]),
        ("status", mark_flow(flow)),
        ("goal", flow["goal"]),
        ("controller", flow["controller_id"]),
        ("owner", flow["owner_session_key"]),
        ("step", flow["current_step"]),
        ("revision", str(flow["revision"])),
        ("created", ago(flow["created_at"])),
        ("changed", ago(flow["updated_at"])),
        ("waits on", format_wait(flow["wait"])),
        ("state", json.dumps(flow["state"], ensure_ascii=False, indent=2)),
    ]
    printer.item(flow, fields)


@click.command(cls=ReadCommand)
@click.argument("flow")
@page_options(200, "entries")
@click.option("--newest", is_flag=True, help="The newest entries first.")
@agent_options
def history(*, flow: str, limit: int, cursor: str | None, newest: bool, **arguments: Any) -> None:
    """Show the journal of a flow, oldest first: what happened, when, and by whom."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Show its entries."""
        fields = {"flow_id": await find_flow_id(session, flow), "cursor": cursor, "newest": newest}
        items, following = await collect_pages(session, "history", "events", limit, fields)
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
@page_options(200, "runs")
@agent_options
def steps(*, flow: str, limit: int, cursor: str | None, **arguments: Any) -> None:
    """List the observed runs of a flow."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """List its runs."""
        items, following = await collect_pages(
            session, "steps", "steps", limit, {"flow_id": await find_flow_id(session, flow), "cursor": cursor}
        )
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
