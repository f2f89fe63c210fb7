"""`taskflow db prune|export|migrate`: maintain the database.

Delete flows that ended long ago, export all as JSON lines, bring the schema up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from nats_taskflow.cli.command import AskCommand, SettingsCommand
from nats_taskflow.cli.dev_folder import load_with_database
from nats_taskflow.cli.identity import read_intervention, reason_option
from nats_taskflow.cli.output import Printer, progress
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.selection import ask_to_confirm, yes_option
from nats_taskflow.cli.session import collect_pages, run
from nats_taskflow.text import counted

if TYPE_CHECKING:
    import sqlite3

_BATCH = 1000
_JSON_COLUMNS = {
    "state_json": "state",
    "wait_json": "wait",
    "progress_json": "progress",
    "payload_json": "payload",
    "result_json": "result",
}


def _duration(_ctx: click.Context, _parameter: click.Parameter, text: str) -> str:
    """Refuse a bad duration before anybody is asked to confirm."""
    from nats_taskflow.units import parse_duration

    try:
        parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


@click.command(cls=AskCommand)
@click.option("--older-than", required=True, metavar="DURATION", callback=_duration, help="Flows that ended longer ago than this (30d).")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@yes_option
@reason_option
def prune(*, older_than: str, yes: bool, **arguments: Any) -> None:
    """Have the worker delete flows that ended long ago, with their journals; never one whose events are not published."""
    target = f"all flows that ended longer ago than {older_than}"
    intervention = read_intervention(arguments)

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Delete a batch at a time until none is left."""
        pruned = 0
        if arguments["dry_run"]:
            prunable = await _count_prunable(session, older_than)
            printer.item({"would_prune": prunable}, [("would prune", f"{counted(prunable, 'flow')}; nothing was done")])
            return
        if not (yes or ask_to_confirm("prune", target, "say --yes")):
            printer.note("Nothing was done.")
            return
        with progress("pruning", None, shown=printer.for_people) as count:
            while True:
                answer = await session.ask("prune", older_than=older_than, limit=_BATCH, **intervention)
                pruned += answer["pruned"]
                count(answer["pruned"])
                if not answer["more"]:
                    break
        printer.item({"pruned": pruned}, [("pruned", counted(pruned, "flow"))])

    run(arguments, main, patience=30.0)


async def _count_prunable(session: OperatorSession, older_than: str) -> int:
    """Count the flows that ended that long ago.

    It also counts those that would be kept until their events are published.
    """
    total = 0
    for status in ("finished", "failed", "cancelled"):
        cursor: str | None = None
        while True:
            fields = {"status": status, "older_than": older_than, "cursor": cursor}
            flows, cursor = await collect_pages(session, "list", "flows", _BATCH, fields)
            total += len(flows)
            if cursor is None:
                break
    return total


@click.command(cls=SettingsCommand)
@click.option("--db", "place", metavar="FILE", help="Export this file instead of `store.path`.")
@click.option("--to", "target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write here; stdout if not given.")
def export(*, place: str | None, target: Path | None, **arguments: Any) -> None:
    """Write every flow with its journal and observed runs as one JSON object a line. Read-only, one snapshot, also while a worker runs."""
    import sqlite3

    from nats_taskflow.files import partial_name, publish_file
    from nats_taskflow.store.sqlite.snapshot import open_snapshot

    config = load_with_database(arguments)
    with open_snapshot(place or config.store.path) as opened:
        opened.database.row_factory = sqlite3.Row
        total = opened.database.execute("SELECT count(*) FROM flows").fetchone()[0]
        if target is None:
            _write(opened.database, sys.stdout, total)
            return
        with partial_name(target) as part:
            with part.open("w", encoding="utf-8") as out:
                _write(opened.database, out, total)
            publish_file(part, target)
    click.echo(f"{target}: {counted(total, 'flow')}", err=True)


def _write(database: sqlite3.Connection, out: IO[str], total: int) -> None:
    """Write the flows, oldest first."""
    with progress("exporting", total, shown=out.name != "<stdout>") as count:
        for row in database.execute("SELECT * FROM flows ORDER BY n"):
            flow = _plain(row)
            flow["history"] = [_plain(r) for r in database.execute("SELECT * FROM flow_events WHERE flow = ? ORDER BY seq", (row["n"],))]
            flow["steps"] = [_plain(r) for r in database.execute("SELECT * FROM flow_steps WHERE flow = ? ORDER BY n", (row["n"],))]
            out.write(json.dumps(flow, ensure_ascii=False) + "\n")
            count(1)


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    """Convert a row to a dictionary, with JSON decoded and without internal keys."""
    return dict(_fields(row))


def _fields(row: sqlite3.Row) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a row."""
    for name in row.keys():  # noqa: SIM118 - iterating a row gives its values
        if name in ("n", "flow", "epoch"):
            continue
        value = row[name]
        yield _JSON_COLUMNS.get(name, name), json.loads(value) if name in _JSON_COLUMNS and value is not None else value


@click.command(cls=SettingsCommand)
@click.option("--check", "only_check", is_flag=True, help="Only say which schema it has; exit 1 where it is not the newest.")
@click.option("--print", "only_print", is_flag=True, help="Only print the statements that it would run.")
@click.pass_context
def migrate(ctx: click.Context, /, *, only_check: bool, only_print: bool, **arguments: Any) -> None:
    """Bring the database to this program's schema, after a backup beside it. The worker must not run; it does the same at its start."""
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.config.settings import LogConfig
    from nats_taskflow.observe.log import configure_logging
    from nats_taskflow.store.sqlite.snapshot import find_database, schema_of
    from nats_taskflow.store.sqlite.statements import migrations

    path, newest = find_database(load_with_database(arguments).store.path), len(migrations())
    version = schema_of(path)
    if only_print:
        _print_migrations(version)
        return
    if version == newest or only_check:
        click.echo(f"{path}: schema {version}, this program's is {newest}")
        ctx.exit(0 if version == newest else 1)
    configure_logging(LogConfig(level="error"))

    async def open_and_close() -> int:
        """Let the store migrate as it does at every start."""
        from nats_taskflow import app

        await app.migrate(str(path))
        return 0

    code = launch(open_and_close())
    if code == 0:
        click.echo(f"{path}: schema {version} → {newest}; the backup is {path}.schema-{version}.backup")
    ctx.exit(code)


def _print_migrations(version: int) -> None:
    """Print the SQL that leads from a schema to the newest."""
    from nats_taskflow.store.sqlite.statements import migrations

    for number, statements in enumerate(migrations()[version:], version):
        click.echo(f"-- schema {number} → {number + 1}")
        for statement in statements:
            click.echo(f"{statement};")
        click.echo(f"PRAGMA user_version = {number + 1};")
