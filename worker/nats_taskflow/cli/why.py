"""`taskflow why FLOW`: explain a flow in sentences, with commands to copy."""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli import layout
from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.identity import agent_options
from nats_taskflow.cli.output import Printer, terminal_width
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.selection import find_flow_id
from nats_taskflow.cli.session import run

_SIGNS = {"waits": "⏸", "near": "✗", "next": "→", "state": "•"}


@click.command(cls=ReadCommand)
@click.argument("flow")
@agent_options
def why(*, flow: str, **arguments: Any) -> None:
    """Explain FLOW: what it waits for, what came near, what happens next, and what to do."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Print the sentences."""
        answer = await session.ask("why", flow_id=await find_flow_id(session, flow))
        if not printer.for_people:
            printer.item(answer, [])
            return
        printer.text(f"{answer['flow_id']} is {answer['status']}.")
        for sentence in answer["sentences"]:
            printer.text(f" {_SIGNS.get(sentence['kind'], '•')} {layout.wrap(sentence['text'], terminal_width(), '   ')}")
            if sentence["fix"]:
                printer.text(f"     {layout.command_lines(sentence['fix'], terminal_width(), '     ')}")

    run(arguments, main)
