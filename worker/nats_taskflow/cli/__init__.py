"""The command line: one module for each noun that is typed.

A module is loaded when its command is used. This room may import everything, and nothing imports it but `__main__`. Nothing heavy (nats,
structlog, uvicorn, the worker itself) is loaded before a command needs it, so imports stand in functions here. Begin with `waits`: it takes
its options from `selection` and asks through `session`, where either `online` or `offline` answers by `protocol`. It prints with `output`,
which lays text out with `layout`. `command` and `options` make help and parsing, `exit_codes` the numbers at the end, `runtime` and
`streams` the process around it all.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from click.exceptions import NoSuchCommand

from nats_taskflow.cli.command import Group, first_sentence
from nats_taskflow.cli.exit_codes import USAGE, CommandFailed
from nats_taskflow.cli.streams import run_and_exit
from nats_taskflow.errors import Refusal
from nats_taskflow.version import program_version

_COMMANDS = {
    "run": "Run the worker until it is told to stop (SIGTERM, Ctrl-C).",
    "dev": "Run the worker with a NATS server of its own; data in ./.taskflow/.",
    "demo": "Show a flow survive a kill: start, delegate, SIGKILL, reply while dead, restart, resume, finish. "
    "Exits 0 when all of it came true.",
    "flow": "See flows and steer them. A FLOW is an id, or at least 6 characters of its beginning or end.",
    "waits": "Show who waits for what, since when and until when; the longest-waiting first.",
    "who": "Show who waits for TOPIC (and CORRELATION_ID), and which replies are held for it.",
    "why": "Explain FLOW: what it waits for, what came near, what happens next, and what to do.",
    "reply": "Publish a reply on TOPIC with CORRELATION_ID. PAYLOAD is JSON (or text); `-` reads it from stdin.",
    "held": "See replies that nobody waits for yet; give one to a flow, or let it expire.",
    "dlq": "See dead letters, replay them, forget them.",
    "events": "Show state changes from the stream of events, in the order they were published.",
    "top": "Watch the worker: figures and the longest waits. Ctrl-C ends.",
    "stats": "Count flows, messages, waits, held replies and dead letters.",
    "check": "Say whether it is well. Exit 0 ok, 1 warning, 2 critical, 3 unknown (nobody answers), as Nagios has it.",
    "doctor": "Look at configuration, versions, database, disk, credentials, NATS, permissions, streams, workers and clock. "
    "Changes nothing.",
    "log": "Show who replayed, purged, matched, released or pruned what, and why; newest first.",
    "mcp": "Serve durable flows to an LLM agent by the Model Context Protocol: the tool `taskflow`, flows and waits as resources.",
    "skill": "Teach an LLM agent to use flows: the skill that comes with this version.",
    "db": "Look after the database, whether a worker runs on it or not.",
    "provision": "Make what the worker needs in JetStream, then end: the streams and the durable consumers, as the settings say.",
    "config": "Show or check the settings that `taskflow run` would use, without starting anything.",
    "context": "See the contexts of the `nats` CLI. Use one with --nats-context NAME, or NATS_CONTEXT.",
    "schema": "List the message schemas, or print one: command.start, query.status, admin.list, event, asyncapi, …",
    "completion": 'Print the completion script for SHELL. For bash: eval "$(taskflow completion bash)".',
    "version": "Print the version.",
}
"""Every subcommand, and the first paragraph of its help: listing them loads none of their modules."""
_SECTIONS = {
    "Begin": ("dev", "demo", "run"),
    "Flows": ("flow", "waits", "why", "who", "reply", "events"),
    "What could not be delivered": ("held", "dlq"),
    "The worker": ("top", "stats", "check", "doctor", "log"),
    "LLM agents": ("mcp", "skill"),
    "Set up and look after": ("provision", "db", "config", "context", "schema", "completion", "version"),
}


class Commands(Group):
    """The subcommands, each in the module of its name; their errors become exit codes."""

    sections = _SECTIONS

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the subcommands in the order in which a newcomer needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Load a subcommand; None where there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"nats_taskflow.cli.{cmd_name}"), cmd_name)
        return command

    def describe(self, ctx: click.Context, name: str) -> str:  # noqa: ARG002 - the group's signature
        """Return what a subcommand does, without loading it.

        Loading them all would take a fifth of the help's time.
        """
        return first_sentence(_COMMANDS[name])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand, and suggest one for a misspelt name.

        click by itself would suggest only commands that are loaded.
        """
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as unknown:
            raise NoSuchCommand(unknown.command_name, possibilities=_COMMANDS, ctx=ctx) from None

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the options before the subcommand; errors become exit codes."""
        with errors_as_exit_codes():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run the subcommand; errors become exit codes."""
        with errors_as_exit_codes():
            return super().invoke(ctx)


@contextlib.contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn a refusal into a line on stderr and its exit code; usage errors exit 64."""
    try:
        yield
    except click.UsageError as error:
        error.exit_code = USAGE  # type: ignore[misc]  # sysexits.h; on this error only: other users of click keep their 2
        raise
    except Refusal as refusal:
        raise CommandFailed(str(refusal), refusal.exit_code) from refusal
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 reach Python as surrogates
        usage = click.UsageError(f"{error.object[:100]!r} is no text: what a command is given has to be UTF-8")
        usage.exit_code = USAGE  # type: ignore[misc]  # as above
        raise usage from error
    except BaseExceptionGroup as group:  # task groups wrap what ends them
        cause = _refusal_of(group)
        if cause is None:
            raise
        raise CommandFailed(str(cause), cause.exit_code) from cause


def _refusal_of(group: BaseExceptionGroup[BaseException]) -> Refusal | None:
    """Return the first refusal of a group of refusals.

    None where there is a defect among them.
    """
    _, defects = group.split(Refusal)
    if defects is not None:
        return None
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, Refusal)
    return first


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(program_version(), prog_name="taskflow")
@click.pass_context
def taskflow(ctx: click.Context) -> None:
    """Durable agent flows over NATS JetStream, stored in SQLite.

    Try it: `taskflow dev` starts a worker with a server of its own; `taskflow demo` tells the whole story and ends.

    Where NATS is may also stand before the command: `taskflow -s nats://nats.example:4222 waits`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    run_and_exit(lambda: taskflow(prog_name="taskflow"))
