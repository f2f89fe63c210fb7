"""`taskflow schema [NAME]`: the JSON Schemas of all messages."""

from __future__ import annotations

import click

from nats_taskflow.cli.command import TaskflowCommand


@click.command(cls=TaskflowCommand)
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """List the message schemas, or print one: command.start, query.status, admin.list, event, asyncapi, …"""
    from nats_taskflow.wire.schema.documents import documents

    schemas = documents()
    if name is None:
        for file in schemas:
            click.echo(file.removesuffix(".json"))
        return
    file = name.removesuffix(".json") + ".json"
    if file not in schemas:
        from difflib import get_close_matches

        near = get_close_matches(file, schemas, n=1)
        hint = f"did you mean {near[0].removesuffix('.json')}?" if near else "`taskflow schema` lists them"
        raise click.UsageError(f"there is no schema {name!r}; {hint}")
    click.echo(schemas[file].decode(), nl=False)
