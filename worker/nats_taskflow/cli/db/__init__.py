"""`taskflow db`: commands on the database file, with or without a worker on it."""

from __future__ import annotations

import click

from nats_taskflow.cli.command import Group
from nats_taskflow.cli.db.backup import backup
from nats_taskflow.cli.db.check import check
from nats_taskflow.cli.db.upkeep import export, migrate, prune


@click.group(cls=Group)
def db() -> None:
    """Look after the database, whether a worker runs on it or not."""


db.add_command(check)
db.add_command(backup)
db.add_command(prune)
db.add_command(export)
db.add_command(migrate)
