"""`taskflow stats`: everything counted, once."""

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
        found = await session.ask("stats")
        printer.item(found, figure_lines(found))

    run(arguments, main)


def figure_lines(found: Json) -> list[tuple[str, str]]:
    """Return the figures as lines."""
    flows = " · ".join(f"{count:,} {status}" for status, count in found["flows"].items())
    messages = " · ".join(f"{count:,} {name}" for name, count in found["messages"].items() if count) or "none yet"
    waits, worker = found["waits"], found["worker"]
    oldest = f"oldest {since(waits['oldest_since'], found['now'])} ({waits['oldest_flow']})" if waits["oldest_flow"] else "none"
    state = "not asked" if not worker else "connected" if worker["connected"] else "not connected to NATS"
    state += "".join(f", {why}" for why in worker.get("not_ready", ()))
    unpublished = f"{counted(found['unpublished']['events'], 'event')}, {counted(found['unpublished']['dead_letters'], 'dead letter')}"
    outgoing = found["outgoing"]
    tried = f", tried up to {counted(outgoing['attempts'], 'time')}" if outgoing["waiting"] else ""
    return [
        ("flows", flows),
        ("messages", messages),
        ("waits", f"{oldest} · {waits['overdue']:,} overdue"),
        ("held replies", f"{found['held']:,}"),
        ("set aside", f"{found['set_aside']:,}"),
        ("dead letters", f"{found['dead_letters']:,}"),
        ("not published", unpublished),
        ("largest use", _most(found.get("most", {}))),
        ("to delegates", f"{outgoing['waiting']:,} not sent{tried}"),
        ("worker", f"{state} · version {found['version']} · epoch {found['epoch']}"),
    ]


def _most(most: Json) -> str:
    """Say whose flows take most of what the quotas bound; a worker of an older version does not tell."""
    units = {"open_flows": ("open flow", ""), "state_bytes": ("byte of state", "bytes of state")}
    return " · ".join(f"{counted(one['used'], *units[quota])} ({one['agent']})" for quota, one in most.items() if quota in units) or "none"
