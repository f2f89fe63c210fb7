"""`taskflow held`: replies that came before anybody waited for them."""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import AskCommand, Group, ReadCommand
from nats_taskflow.cli.flow.act import print_outcome
from nats_taskflow.cli.identity import read_intervention, reason_option
from nats_taskflow.cli.options import aliased_option
from nats_taskflow.cli.output import Printer
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.selection import find_flow_id
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.cli.who import HELD


@click.group(cls=Group)
def held() -> None:
    """See replies that nobody waits for yet; give one to a flow, or let it expire."""


@held.command("list", cls=ReadCommand)
@click.option("--topic", metavar="TOPIC", help="Only those on this topic.")
@aliased_option("--correlation-id", "--corr", metavar="ID", help="Only those with this correlation id.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
def list_(*, topic: str | None, correlation_id: str | None, limit: int, cursor: str | None, **arguments: Any) -> None:
    """List held replies, in the order they came."""

    async def main(line: OperatorSession, printer: Printer) -> None:
        """List them."""
        items, following = await collect_pages(
            line, "held", "held", limit, {"topic": topic, "correlation_id": correlation_id, "cursor": cursor}
        )
        printer.items(items, HELD, cursor=following, empty="No reply is held: every one found its wait.")

    run(arguments, main)


@held.command(cls=AskCommand)
@click.argument("number", type=int)
@click.argument("flow")
@click.option("--leaf", type=int, metavar="N", help="Which part of a combined wait it is for.")
@reason_option
def match(*, number: int, flow: str, leaf: int | None, **arguments: Any) -> None:
    """Give held reply NUMBER to FLOW, as if it had come for it."""
    who = read_intervention(arguments)

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Give it."""
        answer = await line.ask("held", action="match", number=number, flow_id=await find_flow_id(line, flow), leaf=leaf, **who)
        print_outcome(answer, printer)

    run(arguments, main)


@held.command(cls=AskCommand)
@click.argument("number", type=int)
@reason_option
def expire(*, number: int, **arguments: Any) -> None:
    """Move held reply NUMBER to the dead letters now."""
    who = read_intervention(arguments)

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Let it expire."""
        answer = await line.ask("held", action="expire", number=number, **who)
        printer.item(answer, [("held reply", f"{number} is a dead letter now")])

    run(arguments, main)
