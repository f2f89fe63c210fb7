"""`taskflow db`: what can be done with the database file; one module for each subcommand."""

from __future__ import annotations

import rich_click as click

from worker.cli.db_backup import backup
from worker.cli.db_check import check


@click.group()
def db() -> None:
    """Look after the database, whether a worker runs on it or not."""


db.add_command(check)
db.add_command(backup)
