"""`taskflow events`: what happens to flows, as it is published."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.command import AskCommand
from nats_taskflow.cli.online import OnlineSession
from nats_taskflow.cli.output import Printer, format_time, short_id
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.selection import find_flow_id
from nats_taskflow.cli.session import run

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import StreamMessage

_MAX_READ = 10_000
_DEFAULT_LAST = 20
_ENDLESS = 2**62


@click.command(cls=AskCommand)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; Ctrl-C ends.")
@click.option(
    "--last", default=None, type=click.IntRange(0, _MAX_READ), help="Begin with this many of the newest.  [default: 20, with --follow 0]"
)
@click.option("--since", metavar="TIME", help="Begin with those of then, a duration ago (1h) or an RFC 3339 time; at most 10,000.")
@click.option("--flow", metavar="FLOW", help="Only events of this flow.")
@click.option("--agent", metavar="NAME", help="Only events of this agent's flows.")
@click.option("--filter", "pattern", metavar="REGEX", help="Only events whose line has this in it.")
@click.option("--count", type=click.IntRange(1), help="End after this many.")
def events(*, follow: bool, last: int | None, since: str | None, pattern: str | None, count: int | None, **arguments: Any) -> None:
    """Show state changes from the stream of events, in the order they were published."""
    try:
        line_filter = re.compile(pattern or "")
    except re.error as error:
        raise click.BadParameter(f"--filter: {error}") from error
    if since is not None and last is not None:
        raise click.UsageError("say --since or --last")
    last = _MAX_READ if since is not None else last if last is not None else (0 if follow else _DEFAULT_LAST)
    begin = _read_since(since) if since is not None else None

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Show the newest events, then follow."""
        from nats_taskflow.wire.subjects import EVENTS

        assert isinstance(session, OnlineSession), "events come over NATS"
        flow_id = await find_flow_id(session, arguments["flow"]) if arguments["flow"] else None
        remaining = count if count is not None else _ENDLESS
        old = await session.client.last(EVENTS, last, since=begin) if last else []
        for message in old:
            remaining -= _show(session, message, printer, (arguments["agent"], flow_id), line_filter)
            if not remaining:
                return
        if begin is not None and len(old) == _MAX_READ:
            printer.note(f"{_MAX_READ:,} events were read and there are more: name a --flow, or ask the database (taskflow db export)")
        if not follow:
            return
        subject = session.subjects.events()[0].replace(".*.*.*", f".{arguments['agent'] or '*'}.{flow_id or '*'}.*")
        async for message in session.client.listen(subject, lambda: printer.note(f"following {subject}; Ctrl-C ends")):
            remaining -= _show(session, message, printer, (arguments["agent"], flow_id), line_filter)
            if not remaining:
                return

    run(arguments, main)


def _read_since(text: str) -> datetime:
    """Parse a time, or a duration before now.

    Raises a usage error.
    """
    from nats_taskflow.units import parse_duration

    try:
        at = datetime.fromisoformat(text) if text[4:5] == "-" else datetime.now(UTC) - timedelta(microseconds=parse_duration(text))
    except ValueError as error:
        raise click.UsageError(f"--since takes a duration (1h 30m) or a time (2026-11-22T14:00:00Z), not {text!r}") from error
    return at if at.tzinfo is not None else at.astimezone()


def _show(
    session: OnlineSession, message: StreamMessage, printer: Printer, of: tuple[str | None, str | None], line_filter: re.Pattern[str]
) -> int:
    """Print an event if it is one of those wanted; return how many were printed.

    Its agent and flow have to be those of `of` (None: any), and its line has to match.
    """
    parsed = session.subjects.parse_event(message.subject)
    if parsed is None or any(wanted not in (None, actual) for wanted, actual in zip(of, parsed[:2], strict=True)):
        return 0
    try:
        event = json.loads(message.body)
        data = event["data"]
        what = f"{data['kind']:<16} {data['status']:<10} {data['controller_id']}  {data['current_step']}"
        whole, text = f"{event['time']}  {parsed[1]}  {what}", f"{format_time(event['time'])}  {short_id(parsed[1])}  {what}"
    except (ValueError, KeyError, TypeError):
        event, whole = {"subject": message.subject, "unreadable": True}, f"{message.subject}: no event that can be read"
        text = whole
    if not line_filter.search(whole):
        return 0
    printer.line(text)
    if not printer.for_people:
        printer.item(event, [])
    return 1
