"""`taskflow completion SHELL`: what a shell needs to complete the command line."""

from __future__ import annotations

import click

from nats_taskflow.cli.command import TaskflowCommand


@click.command(cls=TaskflowCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL. For bash: eval "$(taskflow completion bash)"."""
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None, "click knows the shells that it offers"
    click.echo(completion_class(ctx.find_root().command, {}, "taskflow", "_TASKFLOW_COMPLETE").source())
