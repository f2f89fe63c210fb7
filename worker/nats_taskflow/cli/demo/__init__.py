"""`taskflow demo`: a flow that survives a kill, on a real server and worker."""

from __future__ import annotations

import click

from nats_taskflow.cli.command import TaskflowCommand


@click.command(cls=TaskflowCommand)
@click.pass_context
def demo(ctx: click.Context, /) -> None:
    """Show a flow survive a kill: start, delegate, SIGKILL, reply while dead, restart, resume, finish. Exits 0 when all of it came true.

    Uses a server, a database and ports of its own in a temporary folder, and leaves nothing behind.
    """
    from nats_taskflow.cli.demo import story

    ctx.exit(story.run())
