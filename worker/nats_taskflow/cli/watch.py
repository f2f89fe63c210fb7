"""Stay and see: look again every few seconds, or hear what happens to one flow until it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import click

from nats_taskflow.cli.online import OnlineSession
from nats_taskflow.cli.output import Printer, format_time
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.session import Main

_ENDED = ("finished", "failed", "cancelled")


def watch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add that one may stay and look again."""
    seconds = click.FloatRange(0.2, 3600)
    watch = click.option(
        "-w", "--watch", is_flag=False, flag_value=2.0, type=seconds, metavar="[SECONDS]", help="Look again every 2 seconds, or as many."
    )
    return watch(click.option("--count", type=click.IntRange(1), help="With --watch: end after this many looks.")(function))


def repeat(look: Callable[[OperatorSession, Printer], Awaitable[None]], seconds: float | None, count: int | None) -> Main:
    """Return what looks once, or again and again where `seconds` are given; on a terminal each look takes the place of the one before."""

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Look, until it is enough."""
        import asyncio

        looks = 1 if seconds is None else count or 2**62
        for number in range(looks):
            if seconds is not None and printer.for_people and sys.stdout.isatty():
                click.clear()
            await look(line, printer)
            if number + 1 < looks:
                await asyncio.sleep(seconds or 0.0)

    return main


async def follow_flow(line: OperatorSession, flow_id: str, show: Callable[[Json], None], printer: Printer) -> None:
    """Show a flow, then each event that changes it, until it has ended."""
    if not isinstance(line, OnlineSession):
        raise click.UsageError("--follow needs a worker, not --db")
    import asyncio

    subject = line.subjects.events()[0].replace(".*.*.*", f".{line.agent}.{flow_id}.*")
    heard: asyncio.Queue[Json] = asyncio.Queue()
    listening = asyncio.Event()

    async def listen() -> None:
        """Take in what is published."""
        async for kept in line.client.heard(subject, listening.set):
            heard.put_nowait(json.loads(kept.body))

    # It listens before it asks, or what happens between the two would be missed.
    hearing = asyncio.ensure_future(listen())
    ready = asyncio.ensure_future(listening.wait())
    try:
        await asyncio.wait({hearing, ready}, return_when=asyncio.FIRST_COMPLETED)
        flow = (await line.ask("show", flow_id=flow_id))["flow"]
        show(flow)
        printer.note("following it; Ctrl-C ends")
        status, revision = flow["status"], flow["revision"]
        while status not in _ENDED:
            event = await _next(heard, hearing)
            if event["data"]["revision"] <= revision and event["data"]["kind"] != "step_observed":
                continue  # told already, or published again
            status, revision = event["data"]["status"], event["data"]["revision"]
            said = f"{format_time(event['time'])}  {event['data']['kind']:<16} {status:<10} {event['data']['current_step']}"
            printer.line(said)
            if not printer.for_people:
                printer.item(event, [])
    finally:
        ready.cancel()
        hearing.cancel()


async def _next(heard: Any, hearing: Any) -> Json:
    """Return the next event. Raises what ended the listening."""
    import asyncio

    coming = asyncio.ensure_future(heard.get())
    await asyncio.wait({coming, hearing}, return_when=asyncio.FIRST_COMPLETED)
    if not coming.done():
        coming.cancel()
        hearing.result()
    event: Json = await coming
    return event
