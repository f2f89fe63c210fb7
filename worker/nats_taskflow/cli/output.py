"""Print answers: tables for people, JSON for programs.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from nats_taskflow.cli import layout
from nats_taskflow.cli.protocol import Json

_ELASTIC = {
    *("CONTROLLER", "STEP", "GOAL", "WAITS ON", "OWNER", "TOPIC", "CORRELATION ID", "SUBJECT", "PAYLOAD", "MESSAGE"),
    *("ACTOR", "WHO", "ABOUT", "WHY", "RUN", "TASK", "SESSION"),
}
"""Columns that may be cut short on a narrow terminal; ids, counts and times stay whole."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_MARKS = {"created": "○", "running": "▶", "waiting": "⏸", "finished": "✓", "failed": "✗", "cancelled": "⊘"}
_STYLES: dict[str, Json] = {
    "running": {"fg": "cyan"},
    "waiting": {"fg": "yellow"},
    "finished": {"fg": "green"},
    "failed": {"fg": "red"},
    "cancelled": {"dim": True},
    "overdue": {"fg": "red"},
}


class Printer:
    """Prints in one form: `table`, `json`, `jsonl` or `none`."""

    def __init__(self, form: str) -> None:
        self.form = form

    @property
    def for_people(self) -> bool:
        """Whether a person reads this."""
        return self.form == "table"

    def items(
        self, items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]], *, cursor: str | None = None, empty: str
    ) -> None:
        """Print a list: as a table with these columns, or the items as they came.

        `empty` is the text for a person where there are none.
        """
        if self.form == "json":
            click.echo(json.dumps({"items": list(items), "next_cursor": cursor}, ensure_ascii=False))
        elif self.form == "jsonl":
            for item in items:
                click.echo(json.dumps(item, ensure_ascii=False))
        elif self.for_people and not items:
            self.note(empty)
        elif self.for_people:
            for line in table_lines(items, columns):
                click.echo(line)
            if cursor is not None:
                self.note(f"{len(items)} shown; more: --cursor {cursor}")

    def item(self, item: Mapping[str, Any], fields: Sequence[tuple[str, str]]) -> None:
        """Print one thing: its fields for people, or as it came."""
        if self.form in ("json", "jsonl"):
            click.echo(json.dumps(item, ensure_ascii=False))
        elif self.for_people:
            for line in field_lines(fields):
                click.echo(line)

    def text(self, text: str) -> None:
        """Print text for people."""
        if self.for_people:
            click.echo(printable(text))

    def line(self, text: str) -> None:
        """Print exactly one line for people, cut short where the terminal is narrow."""
        if self.for_people:
            flat = " ".join(printable(text).split("\n"))
            click.echo(flat if (width := terminal_width()) is None else layout.cut(flat, width))

    def note(self, text: str) -> None:
        """Print a remark for a person, on stderr."""
        if self.for_people:
            click.echo(printable(text), err=True)


def terminal_width() -> int | None:
    """Return how many columns stdout's terminal has; None where it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]]) -> list[str]:
    """Return a table's lines, coloured if wanted.

    They are as wide as the terminal, or as they need where there is none.
    """
    cells = [[printable(show(item)) for show in columns.values()] for item in items]
    heading, *rows = layout.table([layout.Column(name, name in _ELASTIC) for name in columns], cells, terminal_width())
    styled = [layout.GAP.join(cell if (style := _style(cell)) is None else paint(cell, **style) for cell in row) for row in rows]
    return [paint(layout.GAP.join(heading).rstrip(), bold=True), *(line.rstrip() for line in styled)]


def paint(text: str, **style: Any) -> str:
    """Return text in a style, unless NO_COLOR or a dumb terminal forbids it.

    click drops the style where there is no terminal.
    """
    return text if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else click.style(text, **style)


@contextmanager
def progress(title: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that counts the steps done.

    If `shown`, a person at a terminal sees a bar on stderr meanwhile.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, advance=count)


def field_lines(fields: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of named values, aligned; a value of several lines keeps them."""
    width = max((len(name) for name, _ in fields), default=0)
    lines = []
    for name, value in fields:
        text = printable(value)
        shown = text if "\n" in text else layout.wrap(text, terminal_width(), " " * (width + 2))
        lines.append(f"{name:<{width}}  {shown}".rstrip())
    return lines


def printable(text: str) -> str:
    """Replace characters that could steer a terminal: text may come from anybody.

    Line breaks stay.
    """
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def mark_status(status: str) -> str:
    """Return a status with its sign, so that colour is never all."""
    return f"{_MARKS.get(status, '?')} {status}"


def mark_flow(flow: Mapping[str, Any]) -> str:
    """Return a flow's status with its sign, and whether it is being cancelled."""
    return mark_status(flow["status"]) + (" (cancelling)" if flow["cancel_requested"] else "")


def short_id(flow_id: str) -> str:
    """Return the end of an id for a terminal; elsewhere all of it.

    Ids made at about the same time begin alike.
    """
    return flow_id[-8:] if terminal_width() is not None else flow_id


def format_span(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    whole = int(abs(seconds))
    days, hours, minutes = whole // _DAY, whole % _DAY // _HOUR, whole % _HOUR // _MINUTE
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % _MINUTE}s" if minutes else f"{whole}s"


def since(at: str | None, now: str | None = None) -> str:
    """Return how long ago a time was; the time itself where there is no terminal."""
    if at is None:
        return "—"
    return format_span((_moment(now) - _moment(at)).total_seconds()) if terminal_width() is not None else format_time(at)


def format_time(at: str) -> str:
    """Format a time as all times here: RFC 3339 in UTC, to the second."""
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def ago(at: str) -> str:
    """Return a time and how long ago it was.

    Where there is no terminal, the time alone.
    """
    return f"{format_time(at)} ({since(at)} ago)" if terminal_width() is not None else format_time(at)


def until(at: str | None, now: str | None = None) -> str:
    """Return how far ahead a time is, or by how much it is overdue.

    Where there is no terminal, the time itself.
    """
    if at is None:
        return "—"
    if terminal_width() is None:
        return format_time(at)
    ahead = (_moment(at) - _moment(now)).total_seconds()
    return f"in {format_span(ahead)}" if ahead > 0 else f"overdue {format_span(ahead)} !"


def format_wait(wait: Json | None) -> str:
    """Return what a wait is for, in a few words for a table."""
    match wait:
        case {"kind": "external_event", "topic": topic, **more}:
            return f"✉ {topic} ⟨{more.get('correlation_id', '')}⟩"
        case {"kind": "manual", **more}:
            return f'✋ manual "{more["prompt"]}"' if more.get("prompt") else "✋ manual"
        case {"kind": "timer", "at": at}:
            return f"⏰ timer {format_time(at)}"
        case {"kind": "flow", "flow_id": flow_id}:
            return f"⛓ flow {flow_id}"
        case {"kind": kind, "conditions": parts, **more}:
            count = f"{more['count']} of" if "count" in more else {"any_of": "any of", "all_of": "all of"}.get(kind, kind)
            return f"{count} [{', '.join(format_wait(part) for part in parts)}]"
        case _:
            return "—"


def _moment(at: str | None) -> datetime:
    return datetime.now(UTC) if at is None else datetime.fromisoformat(at)


def _style(cell: str) -> Json | None:
    return next((style for word, style in _STYLES.items() if word in cell.split()), None)
