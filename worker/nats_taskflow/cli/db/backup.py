"""`taskflow db backup`: copy the database while a worker uses it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.dev_folder import load_with_database
from nats_taskflow.text import counted


@click.command(cls=SettingsCommand)
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
def backup(dest: Path | None, *, force: bool, **arguments: Any) -> None:
    """Copy the database to DEST: whole, checked and on disk, or not at all. The worker may run meanwhile.

    DEST is a file or a folder; without it the copy gets a name with the time, beside the database. docs/backing-up.md says how to go back.
    """
    from nats_taskflow.store.sqlite.backup import back_up

    path = load_with_database(arguments).store.path
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the default would leave half a copy
    try:
        result = back_up(path, _target(path, dest), force=force)
    except FileExistsError as error:
        raise click.UsageError(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo(
        f"{result.copy}: {result.size:,} bytes, {counted(result.flows, 'flow')}, schema {result.schema}, checked, {result.seconds:.2f} s"
    )


def _target(path: str, dest: Path | None) -> Path:
    """Return the path of the copy.

    That is DEST, or a name with the time in the folder DEST or beside the database.
    """
    from nats_taskflow.config.paths import resolve_or_refuse
    from nats_taskflow.doors.admin.backup_process import copy_name

    database = resolve_or_refuse(path)
    if dest is None:
        return database.with_name(copy_name(database))
    return dest / copy_name(database) if dest.is_dir() else dest
