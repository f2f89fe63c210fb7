"""Keep a command running: repeat it, or follow a flow until it ends."""

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
    """Add --watch and --count, for `repeat`."""
    seconds = click.FloatRange(0.2, 3600)
    watch = click.option(
        "-w", "--watch", is_flag=False, flag_value=2.0, type=seconds, metavar="[SECONDS]", help="Look again every 2 seconds, or as many."
    )
    return watch(click.option("--count", type=click.IntRange(1), help="With --watch: end after this many looks.")(function))


def repeat(look: Callable[[OperatorSession, Printer], Awaitable[None]], seconds: float | None, count: int | None) -> Main:
    """Return a command that runs `look` once, or every so many seconds.

    On a terminal each output replaces the one before.
    """

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Run `look` as often as was asked for."""
        import asyncio

        looks = 1 if seconds is None else count or 2**62
        for number in range(looks):
            if seconds is not None and printer.for_people and sys.stdout.isatty():
                click.clear()
            await look(session, printer)
            if number + 1 < looks:
                await asyncio.sleep(seconds or 0.0)

    return main


async def follow_flow(session: OperatorSession, flow_id: str, show: Callable[[Json], None], printer: Printer) -> None:
    """Show a flow, then each of its events, until it has ended."""
    if not isinstance(session, OnlineSession):
        raise click.UsageError("--follow needs a worker, not --db")
    import asyncio

    subject = session.subjects.events()[0].replace(".*.*.*", f".{session.agent}.{flow_id}.*")
    events: asyncio.Queue[Json] = asyncio.Queue()
    listening = asyncio.Event()

    async def listen() -> None:
        async for message in session.client.listen(subject, listening.set):
            events.put_nowait(json.loads(message.body))

    # Listen before asking, or what happens between the two is missed.
    listener = asyncio.ensure_future(listen())
    ready = asyncio.ensure_future(listening.wait())
    try:
        await asyncio.wait({listener, ready}, return_when=asyncio.FIRST_COMPLETED)
        flow = (await session.ask("show", flow_id=flow_id))["flow"]
        show(flow)
        printer.note("following it; Ctrl-C ends")
        status, revision = flow["status"], flow["revision"]
        while status not in _ENDED:
            event = await _next_event(events, listener)
            if event["data"]["revision"] <= revision and event["data"]["kind"] != "step_observed":
                continue  # shown already, or published again
            status, revision = event["data"]["status"], event["data"]["revision"]
            line = f"{format_time(event['time'])}  {event['data']['kind']:<16} {status:<10} {event['data']['current_step']}"
            printer.line(line)
            if not printer.for_people:
                printer.item(event, [])
    finally:
        ready.cancel()
        listener.cancel()


async def _next_event(events: Any, listener: Any) -> Json:
    """Return the next event. Raises what ended the listener."""
    import asyncio

    next_event = asyncio.ensure_future(events.get())
    await asyncio.wait({next_event, listener}, return_when=asyncio.FIRST_COMPLETED)
    if not next_event.done():
        next_event.cancel()
        listener.result()
    event: Json = await next_event
    return event
