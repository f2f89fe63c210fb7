"""`taskflow log`: what operators did besides changing flows.

A flow's own history has the rest.
"""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.options import page_options
from nats_taskflow.cli.output import Printer, format_time
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.session import collect_pages, run

_EMPTY = "Nobody has replayed, purged, matched, released or pruned anything yet. What was done to a flow is in `taskflow flow history`."


@click.command(cls=ReadCommand)
@page_options()
def log(*, limit: int, cursor: str | None, **arguments: Any) -> None:
    """Show who replayed, purged, matched, released or pruned what, and why; newest first."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Show a page."""
        items, following = await collect_pages(session, "log", "interventions", limit, {"cursor": cursor})
        columns = {
            "AT": lambda i: format_time(i["at"]),
            "WHO": lambda i: i["actor"],
            "DID": lambda i: i["verb"],
            "ABOUT": lambda i: i["about"],
            "WHY": lambda i: i["reason"],
        }
        printer.items(items, columns, cursor=following, empty=_EMPTY)

    run(arguments, main)
