"""`taskflow stats`: everything counted."""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.output import Printer, since
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.session import run
from nats_taskflow.text import counted


@click.command(cls=ReadCommand)
def stats(**arguments: Any) -> None:
    """Count flows, messages, waits, held replies and dead letters."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        answer = await session.ask("stats")
        printer.item(answer, figure_lines(answer))

    run(arguments, main)


def figure_lines(stats: Json) -> list[tuple[str, str]]:
    """Return the figures with their names, for people."""
    flows = " · ".join(f"{count:,} {status}" for status, count in stats["flows"].items())
    messages = " · ".join(f"{count:,} {name}" for name, count in stats["messages"].items() if count) or "none yet"
    waits, worker = stats["waits"], stats["worker"]
    oldest = f"oldest {since(waits['oldest_since'], stats['now'])} ({waits['oldest_flow']})" if waits["oldest_flow"] else "none"
    state = "not asked" if not worker else "connected" if worker["connected"] else "not connected to NATS"
    state += "".join(f", {why}" for why in worker.get("not_ready", ()))
    unpublished = f"{counted(stats['unpublished']['events'], 'event')}, {counted(stats['unpublished']['dead_letters'], 'dead letter')}"
    outgoing = stats["outgoing"]
    tried = f", tried up to {counted(outgoing['attempts'], 'time')}" if outgoing["waiting"] else ""
    return [
        ("flows", flows),
        ("messages", messages),
        ("waits", f"{oldest} · {waits['overdue']:,} overdue"),
        ("held replies", f"{stats['held']:,}"),
        ("set aside", f"{stats['set_aside']:,}"),
        ("dead letters", f"{stats['dead_letters']:,}"),
        ("not published", unpublished),
        ("largest use", _largest_use(stats.get("most", {}))),
        ("to delegates", f"{outgoing['waiting']:,} not sent{tried}"),
        ("worker", f"{state} · version {stats['version']} · epoch {stats['epoch']}"),
    ]


def _largest_use(most: Json) -> str:
    """Return which agents use most of what the quotas bound.

    A worker of an older version does not report that.
    """
    units = {"open_flows": ("open flow", ""), "state_bytes": ("byte of state", "bytes of state")}
    uses = (f"{counted(use['used'], *units[quota])} ({use['agent']})" for quota, use in most.items() if quota in units)
    return " · ".join(uses) or "none"
