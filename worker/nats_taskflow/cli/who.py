"""`taskflow who TOPIC [CORRELATION_ID]`: who waits for a reply.

It also shows which replies are held for it.
"""

from __future__ import annotations

import json
from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.output import Printer, short_id, since, until
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.session import run


@click.command(cls=ReadCommand)
@click.argument("topic")
@click.argument("correlation_id", required=False)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="At most this many of each.")
def who(*, topic: str, correlation_id: str | None, limit: int, **arguments: Any) -> None:
    """Show who waits for TOPIC (and CORRELATION_ID), and which replies are held for it."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Show waiters and held replies."""
        answer = await session.ask("who", topic=topic, correlation_id=correlation_id, limit=limit)
        if not printer.for_people:
            printer.item(answer, [])
            return
        waiters = {
            "FLOW": lambda w: short_id(w["flow_id"]),
            "CONTROLLER": lambda w: w["controller_id"],
            "STEP": lambda w: w["current_step"],
            "CORRELATION ID": lambda w: w["correlation_id"],
            "SINCE": lambda w: since(w["since"]),
            "DUE": lambda w: until(w["until"]),
        }
        printer.items(answer["waiters"], waiters, empty="Nobody waits for it.")
        printer.items(answer["held"], HELD, empty="No reply is held for it.")
        if answer["more"]:
            printer.note(f"there is more than {limit}: name the correlation id, or raise --limit")

    run(arguments, main)


HELD = {
    "HELD": lambda h: str(h["number"]),
    "TOPIC": lambda h: h["topic"],
    "CORRELATION ID": lambda h: h["correlation_id"],
    "CAME": lambda h: since(h["arrived_at"]),
    "EXPIRES": lambda h: until(h["expires_at"]),
    "PAYLOAD": lambda h: json.dumps(h["payload"], ensure_ascii=False)[:120],
}
