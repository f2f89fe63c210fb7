"""`taskflow events`: what happens to flows, as it is published."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.output import Printer, clock, short
from nats_taskflow.cli.session import AskCommand, Online, OperatorSession, run, whole_id

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import StreamMessage

_MOST = 10_000


@click.command(cls=AskCommand)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; Ctrl-C ends.")
@click.option(
    "--last", default=None, type=click.IntRange(0, 10_000), help="Begin with this many of the newest.  [default: 20, with --follow 0]"
)
@click.option("--since", metavar="TIME", help="Begin with those of then, a duration ago (1h) or an RFC 3339 time; at most 10,000.")
@click.option("--flow", metavar="FLOW", help="Only events of this flow.")
@click.option("--agent", metavar="NAME", help="Only events of this agent's flows.")
@click.option("--filter", "pattern", metavar="REGEX", help="Only events whose line has this in it.")
@click.option("--count", type=click.IntRange(1), help="End after this many.")
def events(*, follow: bool, last: int | None, since: str | None, pattern: str | None, count: int | None, **arguments: Any) -> None:
    """Show state changes from the stream of events, in the order they were published."""
    try:
        wanted = re.compile(pattern or "")
    except re.error as bad:
        raise click.BadParameter(f"--filter: {bad}") from bad
    if since is not None and last is not None:
        raise click.UsageError("say --since or --last")
    begin = _MOST if since is not None else last if last is not None else (0 if follow else 20)
    at = _moment(since) if since is not None else None

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Show the last ones, then follow."""
        from nats_taskflow.wire.subjects import EVENTS

        assert isinstance(line, Online), "events come over NATS"
        flow_id = await whole_id(line, arguments["flow"]) if arguments["flow"] else None
        left = count if count is not None else 2**62
        old = await line.client.last(EVENTS, begin, since=at) if begin else []
        for kept in old:
            left -= _show(line, kept, printer, (arguments["agent"], flow_id), wanted)
            if not left:
                return
        if at is not None and len(old) == _MOST:
            printer.note(f"{_MOST:,} events were read and there are more: name a --flow, or ask the database (taskflow db export)")
        if not follow:
            return
        subject = line.subjects.events()[0].replace(".*.*.*", f".{arguments['agent'] or '*'}.{flow_id or '*'}.*")
        async for kept in line.client.heard(subject, lambda: printer.note(f"following {subject}; Ctrl-C ends")):
            left -= _show(line, kept, printer, (arguments["agent"], flow_id), wanted)
            if not left:
                return

    run(arguments, main)


def _moment(text: str) -> datetime:
    """Return the moment that is meant: so long ago, or the time itself."""
    from nats_taskflow.units import parse_duration

    try:
        at = datetime.fromisoformat(text) if text[4:5] == "-" else datetime.now(UTC) - timedelta(microseconds=parse_duration(text))
    except ValueError as bad:
        raise click.UsageError(f"--since takes a duration (1h 30m) or a time (2026-11-22T14:00:00Z), not {text!r}") from bad
    return at if at.tzinfo is not None else at.astimezone()


def _show(line: Online, kept: StreamMessage, printer: Printer, of: tuple[str | None, str | None], wanted: re.Pattern[str]) -> int:
    """Print an event if it is wanted; returns how many were printed."""
    parsed = line.subjects.parse_event(kept.subject)
    if parsed is None or any(one not in (None, other) for one, other in zip(of, parsed[:2], strict=True)):
        return 0
    try:
        event = json.loads(kept.body)
        data = event["data"]
        what = f"{data['kind']:<16} {data['status']:<10} {data['controller_id']}  {data['current_step']}"
        whole, text = f"{event['time']}  {parsed[1]}  {what}", f"{clock(event['time'])}  {short(parsed[1])}  {what}"
    except (ValueError, KeyError, TypeError):
        event, whole = {"subject": kept.subject, "unreadable": True}, f"{kept.subject}: no event that can be read"
        text = whole
    if not wanted.search(whole):
        return 0
    printer.line(text)
    if not printer.for_people:
        printer.item(event, [])
    return 1
