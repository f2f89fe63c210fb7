"""`taskflow dlq`: messages that could not be used, and how to use them after all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import AskCommand, Group, ReadCommand
from nats_taskflow.cli.identity import read_intervention, reason_option
from nats_taskflow.cli.options import page_options
from nats_taskflow.cli.output import Printer, ago, format_time, progress, since
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.selection import ask_to_confirm, yes_option
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.text import counted

_BATCH = 100
_SHOWN = 20
_FILTERS = ("letter_reason", "subject", "older_than")
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


def _filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of dead letters."""
    reason = click.option("--letter-reason", metavar="REASON", help="Those that died of this (malformed, expired, …).")
    subject = click.option("--subject", metavar="SUBJECT", help="Those that came on this subject.")
    older = click.option("--older-than", metavar="DURATION", help="Those older than this.")
    return reason(subject(older(function)))


@dlq.command("list", cls=ReadCommand)
@_filter_options
@click.option("--letters", is_flag=True, help="List the letters, not the groups.")
@page_options(items="letters")
def list_(*, letters: bool, limit: int, **arguments: Any) -> None:
    """Count dead letters by reason and subject, or list them, oldest first."""
    fields = {name: arguments[name] for name in (*_FILTERS, "cursor")}

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Count them, or list them."""
        if not letters:
            groups = (await session.ask("dlq", **fields))["groups"]
            is_filtered = any(fields[name] is not None for name in _FILTERS)
            empty = "No dead letter is like that." if is_filtered else "No dead letters: everything could be used."
            printer.items(groups, _GROUPS, empty=empty)
            return
        items, cursor = await collect_pages(session, "dlq", "letters", limit, fields | {"grouped": False})
        printer.items(items, _LETTERS, cursor=cursor, empty="No dead letters.")

    run(arguments, main)


@dlq.command(cls=ReadCommand)
@click.argument("number", type=int)
def show(*, number: int, **arguments: Any) -> None:
    """Show dead letter NUMBER whole: why it died, where it came from, headers and body."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Show the letter."""
        letter = (await session.ask("dlq", action="show", number=number))["letter"]
        times = letter["replays"]
        replayed = f"{times}× (last {format_time(letter['replayed_at'])} by {letter['replayed_by']})" if times else "never"
        fields = [
            ("number", str(letter["number"])),
            ("reason", f"{letter['reason']}: {letter['message']}"),
            ("at", ago(letter["at"])),
            ("subject", letter["subject"]),
            ("stream", f"{letter['stream']} {letter['seq']}" if letter["stream"] else "—"),
            ("replayed", replayed),
            ("headers", json.dumps(letter["headers"], ensure_ascii=False)),
            ("body", letter.get("text", letter.get("base64", ""))),
        ]
        printer.item(letter, fields)

    run(arguments, main)


@dlq.command(cls=AskCommand)
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]…")
@_filter_options
@click.option("--all", "everything", is_flag=True, help="All that were not replayed yet.")
@click.option("--again", is_flag=True, help="Also those that were replayed before.")
@click.option("--rate", default=50.0, show_default=True, type=click.FloatRange(0.01, 1000), help="At most this many in a second.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@yes_option
@reason_option
def replay(*, numbers: tuple[int, ...], again: bool, rate: float, **arguments: Any) -> None:
    """Publish dead letters again where they came from, each under a new id: publish, confirm, then mark."""
    _handle("replay", numbers, {"rate": rate, "again": again or bool(numbers)}, arguments)


@dlq.command(cls=AskCommand)
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]…")
@_filter_options
@click.option("--all", "everything", is_flag=True, help="All.")
@click.option("--replayed", is_flag=True, help="Only those that were replayed.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@yes_option
@reason_option
def purge(*, numbers: tuple[int, ...], replayed: bool, **arguments: Any) -> None:
    """Forget dead letters in the database. The stream TASKFLOW_DLQ keeps its copies as long as its settings say."""
    _handle("purge", numbers, {"replayed": replayed}, arguments)


def _handle(action: str, numbers: tuple[int, ...], options: Json, arguments: Mapping[str, Any]) -> None:
    """Replay or purge letters: those named, or those of a filter.

    Those of a filter are counted and asked about first.
    """
    fields = {name: arguments[name] for name in (*_FILTERS, "dry_run")} | {"action": action, "all": arguments["everything"], **options}
    is_filtered = arguments["everything"] or any(fields[name] is not None for name in _FILTERS)
    if is_filtered == bool(numbers):
        advice = "name dead letters, or say which with --letter-reason, --subject, --older-than or --all"
        raise click.UsageError(f"{advice}: not both" if numbers else advice)
    request = fields | read_intervention(arguments)

    async def main(session: OperatorSession, printer: Printer) -> int:
        """Count and confirm where there is a filter, then go through them."""
        total, up_to = len(numbers) or None, None
        if is_filtered and not (arguments["yes"] or arguments["dry_run"]):
            matches, _, up_to = await _handle_each(session, {**request, "dry_run": True}, numbers, None, lambda _count: None)
            total = len(matches)
            if matches and not ask_to_confirm(action, counted(total, "dead letter"), "look with --dry-run, then say --yes"):
                printer.note("Nothing was done.")
                return exit_codes.DONE
        with progress(action, total, shown=printer.for_people) as count:
            done, failed, _ = await _handle_each(session, request, numbers, up_to, count)
        _print_outcome(action, done, failed, printer, dry_run=bool(fields["dry_run"]))
        return exit_codes.PARTIAL if failed and done else exit_codes.FAILED if failed else exit_codes.DONE

    run(arguments, main, patience=30.0)


async def _handle_each(
    session: OperatorSession, request: Json, numbers: tuple[int, ...], up_to: int | None, count: Callable[[int], None]
) -> tuple[list[int], list[Json], int | None]:
    """Replay or purge the letters, a batch with each request.

    Returns those done, those that failed, and the number of the last letter there was.
    """
    done: list[int] = []
    failed: list[Json] = []
    last = up_to
    for batch in _batches(numbers):
        cursor: str | None = None
        last = up_to
        while True:
            answer = await session.ask("dlq", **request, numbers=batch, cursor=cursor, up_to=last)
            last = answer["up_to"]
            done += answer["done"]
            failed += answer["failed"]
            count(len(answer["done"]) + len(answer["failed"]))
            cursor = answer["next_cursor"]
            if cursor is None:
                break
    return done, failed, last


def _batches(numbers: tuple[int, ...]) -> list[tuple[int, ...] | None]:
    """Split the numbers into batches for a request; one of None for a filter."""
    return [numbers[at : at + _BATCH] for at in range(0, len(numbers), _BATCH)] or [None]


def _print_outcome(action: str, done: list[int], failed: list[Json], printer: Printer, *, dry_run: bool) -> None:
    """Print what was done to how many, and what failed."""
    for failure in failed:
        click.echo(f"taskflow: dead letter {failure['number']}: {failure['why']}", err=True)
    shown = ", ".join(map(str, done[:_SHOWN])) + (", …" if len(done) > _SHOWN else "")
    verb = {"replay": "replayed", "purge": "forgotten"}[action]
    word = f"would be {verb}" if dry_run else verb
    letters = counted(len(done), "dead letter") + (f": {shown}" if done else "")
    printer.item({"done": done, "failed": failed, "dry_run": dry_run}, [(word, letters)])
