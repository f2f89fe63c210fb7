"""`taskflow dlq`: what could not be used, and how to use it after all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import AskCommand, Group, ReadCommand
from nats_taskflow.cli.identity import read_intervention, reason_option
from nats_taskflow.cli.output import Printer, ago, format_time, progress, since
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.selection import ask_to_confirm, yes_option
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.text import counted

_AT_ONCE = 100
_CHOICE = ("letter_reason", "subject", "older_than")
_GROUPS = {
    "REASON": lambda g: g["reason"],
    "COUNT": lambda g: str(g["count"]),
    "REPLAYED": lambda g: str(g["replayed"]),
    "FIRST": lambda g: since(g["first_at"]),
    "LAST": lambda g: since(g["last_at"]),
    "SUBJECT": lambda g: g["subject"],
}
_LETTERS = {
    "NUMBER": lambda d: str(d["number"]),
    "REASON": lambda d: d["reason"],
    "AT": lambda d: since(d["at"]),
    "BYTES": lambda d: str(d["bytes"]),
    "REPLAYED": lambda d: f"{d['replays']}×" if d["replays"] else "",
    "SUBJECT": lambda d: d["subject"],
    "MESSAGE": lambda d: d["message"],
}


@click.group(cls=Group)
def dlq() -> None:
    """See dead letters, replay them, forget them."""


def _choice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add which dead letters are meant."""
    reason = click.option("--letter-reason", metavar="REASON", help="Those that died of this (malformed, expired, …).")
    subject = click.option("--subject", metavar="SUBJECT", help="Those that came on this subject.")
    older = click.option("--older-than", metavar="DURATION", help="Those older than this.")
    return reason(subject(older(function)))


@dlq.command("list", cls=ReadCommand)
@_choice
@click.option("--letters", is_flag=True, help="List the letters, not the groups.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many letters.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the page before ended.")
def list_(*, letters: bool, limit: int, **arguments: Any) -> None:
    """Count dead letters by reason and subject, or list them, oldest first."""
    fields = {name: arguments[name] for name in ("letter_reason", "subject", "older_than", "cursor")}

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Count or list."""
        if not letters:
            groups = (await line.ask("dlq", **fields))["groups"]
            narrowed = any(fields[name] is not None for name in _CHOICE)
            printer.items(
                groups, _GROUPS, empty="No dead letter is like that." if narrowed else "No dead letters: everything could be used."
            )
            return
        items, cursor = await collect_pages(line, "dlq", "letters", limit, fields | {"grouped": False})
        printer.items(items, _LETTERS, cursor=cursor, empty="No dead letters.")

    run(arguments, main)


@dlq.command(cls=ReadCommand)
@click.argument("number", type=int)
def show(*, number: int, **arguments: Any) -> None:
    """Show dead letter NUMBER whole: why it died, where it came from, headers and body."""

    async def main(line: OperatorSession, printer: Printer) -> None:
        """Show it."""
        letter = (await line.ask("dlq", action="show", number=number))["letter"]
        times = letter["replays"]
        replayed = f"{times}× (last {format_time(letter['replayed_at'])} by {letter['replayed_by']})" if times else "never"
        lines = [
            ("number", str(letter["number"])),
            ("reason", f"{letter['reason']}: {letter['message']}"),
            ("at", ago(letter["at"])),
            ("subject", letter["subject"]),
            ("stream", f"{letter['stream']} {letter['seq']}" if letter["stream"] else "—"),
            ("replayed", replayed),
            ("headers", json.dumps(letter["headers"], ensure_ascii=False)),
            ("body", letter.get("text", letter.get("base64", ""))),
        ]
        printer.item(letter, lines)

    run(arguments, main)


@dlq.command(cls=AskCommand)
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]…")
@_choice
@click.option("--all", "everything", is_flag=True, help="All that were not replayed yet.")
@click.option("--again", is_flag=True, help="Also those that were replayed before.")
@click.option("--rate", default=50.0, show_default=True, type=click.FloatRange(0.01, 1000), help="At most this many in a second.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@yes_option
@reason_option
def replay(*, numbers: tuple[int, ...], again: bool, rate: float, **arguments: Any) -> None:
    """Publish dead letters again where they came from, each under a new id: publish, confirm, then mark."""
    more = {"rate": rate, "again": again or bool(numbers)}
    _handle("replay", numbers, more, arguments)


@dlq.command(cls=AskCommand)
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]…")
@_choice
@click.option("--all", "everything", is_flag=True, help="All.")
@click.option("--replayed", is_flag=True, help="Only those that were replayed.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@yes_option
@reason_option
def purge(*, numbers: tuple[int, ...], replayed: bool, **arguments: Any) -> None:
    """Forget dead letters in the database. The stream TASKFLOW_DLQ keeps its copies as long as its settings say."""
    _handle("purge", numbers, {"replayed": replayed}, arguments)


def _handle(action: str, numbers: tuple[int, ...], more: Json, arguments: Mapping[str, Any]) -> None:
    """Do it to the letters: those named, or those of a filter, which are counted and asked about first."""
    fields = {name: arguments[name] for name in (*_CHOICE, "dry_run")} | {"action": action, "all": arguments["everything"], **more}
    filtered = arguments["everything"] or any(fields[name] is not None for name in _CHOICE)
    if filtered == bool(numbers):
        named = "name dead letters, or say which with --letter-reason, --subject, --older-than or --all"
        raise click.UsageError(f"{named}: not both" if numbers else named)

    said = fields | read_intervention(arguments)

    async def main(line: OperatorSession, printer: Printer) -> int:
        """Ask, and go through them."""
        total, up_to = len(numbers) or None, None
        if filtered and not (arguments["yes"] or arguments["dry_run"]):
            found, _, up_to = await _each(line, {**said, "dry_run": True}, numbers, None, lambda _count: None)
            total = len(found)
            if found and not ask_to_confirm(action, counted(total, "dead letter"), "look with --dry-run, then say --yes"):
                printer.note("Nothing was done.")
                return exit_codes.DONE
        with progress(action, total, shown=printer.for_people) as tell:
            done, failed, _ = await _each(line, said, numbers, up_to, tell)
        _tell(action, done, failed, printer, dry_run=bool(fields["dry_run"]))
        return exit_codes.PARTIAL if failed and done else exit_codes.FAILED if failed else exit_codes.DONE

    run(arguments, main, patience=30.0)


async def _each(
    line: OperatorSession, said: Json, numbers: tuple[int, ...], up_to: int | None, tell: Callable[[int], None]
) -> tuple[list[int], list[Json], int | None]:
    """Go through the letters, some with each request, until none is left; returns those done, those that failed, and the last one."""
    done: list[int] = []
    failed: list[Json] = []
    last = up_to
    for some in _portions(numbers):
        cursor: str | None = None
        last = up_to
        while True:
            answer = await line.ask("dlq", **said, numbers=some, cursor=cursor, up_to=last)
            last = answer["up_to"]
            done += answer["done"]
            failed += answer["failed"]
            tell(len(answer["done"]) + len(answer["failed"]))
            cursor = answer["next_cursor"]
            if cursor is None:
                break
    return done, failed, last


def _portions(numbers: tuple[int, ...]) -> list[tuple[int, ...] | None]:
    """Cut the numbers into what one request takes; None where none were given."""
    return [numbers[at : at + _AT_ONCE] for at in range(0, len(numbers), _AT_ONCE)] or [None]


def _tell(action: str, done: list[int], failed: list[Json], printer: Printer, *, dry_run: bool) -> None:
    """Say what was done to how many, and what could not be."""
    for one in failed:
        click.echo(f"taskflow: dead letter {one['number']}: {one['why']}", err=True)
    shown = ", ".join(map(str, done[:20])) + (", …" if len(done) > 20 else "")  # noqa: PLR2004 - twenty fit a line
    verb = {"replay": "replayed", "purge": "forgotten"}[action]
    word = f"would be {verb}" if dry_run else verb
    printer.item(
        {"done": done, "failed": failed, "dry_run": dry_run}, [(word, counted(len(done), "dead letter") + (f": {shown}" if done else ""))]
    )
