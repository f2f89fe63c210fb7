"""`taskflow held`: replies that came before anybody waited for them."""

from __future__ import annotations

from typing import Any

import click

from nats_taskflow.cli.command import AskCommand, Group, ReadCommand
from nats_taskflow.cli.flow.act import print_outcome
from nats_taskflow.cli.identity import read_intervention, reason_option
from nats_taskflow.cli.options import aliased_option, page_options
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
@page_options()
def list_(*, topic: str | None, correlation_id: str | None, limit: int, cursor: str | None, **arguments: Any) -> None:
    """List held replies, in the order they came."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        fields = {"topic": topic, "correlation_id": correlation_id, "cursor": cursor}
        items, following = await collect_pages(session, "held", "held", limit, fields)
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

    async def main(session: OperatorSession, printer: Printer) -> None:
        answer = await session.ask("held", action="match", number=number, flow_id=await find_flow_id(session, flow), leaf=leaf, **who)
        print_outcome(answer, printer)

    run(arguments, main)


@held.command(cls=AskCommand)
@click.argument("number", type=int)
@reason_option
def expire(*, number: int, **arguments: Any) -> None:
    """Move held reply NUMBER to the dead letters now."""
    who = read_intervention(arguments)

    async def main(session: OperatorSession, printer: Printer) -> None:
        answer = await session.ask("held", action="expire", number=number, **who)
        printer.item(answer, [("held reply", f"{number} is a dead letter now")])

    run(arguments, main)
