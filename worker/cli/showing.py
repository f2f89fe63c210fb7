"""Say answers: tables for people, JSON for programs; data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

Json = dict[str, Any]
_WIDE = 400
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_MARKS = {"created": "○", "running": "▶", "waiting": "⏸", "finished": "✓", "failed": "✗", "cancelled": "⊘"}
_STYLES = {"running": "cyan", "waiting": "yellow", "finished": "green", "failed": "red", "cancelled": "dim", "overdue": "red"}


class Printer:
    """Prints in the form that was asked for: `table`, `json`, `jsonl` or `none`."""

    def __init__(self, form: str) -> None:
        self.form = form

    @property
    def for_people(self) -> bool:
        """Whether a person reads it."""
        return self.form == "table"

    def items(
        self, items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]], *, cursor: str | None = None, empty: str
    ) -> None:
        """Print a list: a table with these columns, or the items as they came. `empty`: what to say to a person where there is none."""
        if self.form == "json":
            click.echo(json.dumps({"items": list(items), "next_cursor": cursor}, ensure_ascii=False))
        elif self.form == "jsonl":
            for item in items:
                click.echo(json.dumps(item, ensure_ascii=False))
        elif self.for_people and not items:
            self.note(empty)
        elif self.for_people:
            self._table(items, columns)
            if cursor is not None:
                self.note(f"{len(items)} shown; more: --cursor {cursor}")

    def _table(self, items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]]) -> None:
        """Print a table: as wide as the terminal, or as it needs to be where nobody looks."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        last = list(columns)[-1]
        for name in columns:
            table.add_column(name, no_wrap=name != last, overflow="fold")
        for item in items:
            cells = [printable(show(item)) for show in columns.values()]
            table.add_row(*(Text(cell, style=_style(cell)) for cell in cells))
        self.console().print(table)

    def item(self, item: Mapping[str, Any], lines: Sequence[tuple[str, str]]) -> None:
        """Print one thing: its lines, or as it came."""
        if self.form in ("json", "jsonl"):
            click.echo(json.dumps(item, ensure_ascii=False))
        elif self.for_people:
            width = max((len(name) for name, _ in lines), default=0)
            for name, value in lines:
                click.echo(f"{name:<{width}}  {printable(value)}".rstrip())

    def text(self, line: str) -> None:
        """Print a line for people."""
        if self.for_people:
            click.echo(printable(line))

    def note(self, text: str) -> None:
        """Say something besides the data, on stderr."""
        if self.for_people:
            click.echo(printable(text), err=True)

    def console(self) -> Console:
        """Return where tables go; it obeys NO_COLOR and TERM."""
        from rich.console import Console

        return Console(file=sys.stdout, highlight=False) if sys.stdout.isatty() else Console(file=sys.stdout, width=_WIDE, highlight=False)


@contextmanager
def progress(what: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Give what hears how many are done; a person at a terminal sees a bar on stderr meanwhile."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, advance=count)


def printable(text: str) -> str:
    """Return the text without what could steer a terminal: it may come from anybody. Lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def mark(status: str) -> str:
    """Return a status with its sign: never by colour alone."""
    return f"{_MARKS.get(status, '?')} {status}"


def short(flow_id: str) -> str:
    """Return the end of an id: the beginnings of those made together are alike."""
    return flow_id[-8:] if sys.stdout.isatty() else flow_id


def span(seconds: float) -> str:
    """Spell a span in its two largest units."""
    left = int(abs(seconds))
    days, hours, minutes = left // _DAY, left % _DAY // _HOUR, left % _HOUR // _MINUTE
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {left % _MINUTE}s" if minutes else f"{left}s"


def since(at: str | None, now: str | None = None) -> str:
    """Say how long ago a moment was; the moment itself where nobody looks."""
    if at is None:
        return "—"
    return span((_moment(now) - _moment(at)).total_seconds()) if sys.stdout.isatty() else at


def until(at: str | None, now: str | None = None) -> str:
    """Say how far ahead a moment is, or that it is past; the moment itself where nobody looks."""
    if at is None:
        return "—"
    if not sys.stdout.isatty():
        return at
    ahead = (_moment(at) - _moment(now)).total_seconds()
    return f"in {span(ahead)}" if ahead > 0 else f"overdue {span(ahead)} !"


def waits_on(wait: Json | None) -> str:
    """Say in few words what a wait is for."""
    match wait:
        case {"kind": "external_event", "topic": topic, **more}:
            return f"✉ {topic} ⟨{more.get('correlation_id', '')}⟩"
        case {"kind": "manual", **more}:
            return f'✋ manual "{more["prompt"]}"' if more.get("prompt") else "✋ manual"
        case {"kind": "timer", "at": at}:
            return f"⏰ timer {at}"
        case {"kind": "flow", "flow_id": flow_id}:
            return f"⛓ flow {flow_id}"
        case {"kind": kind, "conditions": parts, **more}:
            count = f"{more['count']} of" if "count" in more else {"any_of": "any of", "all_of": "all of"}.get(kind, kind)
            return f"{count} [{', '.join(waits_on(part) for part in parts)}]"
        case _:
            return "—"


def _moment(at: str | None) -> datetime:
    """Return a time, or now."""
    return datetime.now(UTC) if at is None else datetime.fromisoformat(at)


def _style(cell: str) -> str:
    """Return the colour of a cell, by its words."""
    return next((style for word, style in _STYLES.items() if word in cell.split()), "")
