"""The command `taskflow`: one module for each subcommand, loaded when it is used.

Exit codes are those of `exits`, the worker's own (CONTRACT 7) among them. Nothing heavy (nats, structlog, uvicorn, the worker itself)
is imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, NoReturn

import rich_click as click
from click.exceptions import Exit, NoSuchCommand

from worker.cli.exits import USAGE
from worker.errors import Refusal
from worker.version import program_version

_COMMANDS = (
    *("run", "dev", "demo"),
    *("flow", "waits", "who", "why", "reply", "held", "dlq"),
    *("events", "top", "stats", "check", "doctor", "log"),
    *("mcp", "skill"),
    *("db", "provision", "config", "context", "schema", "completion", "version"),
)


class Commands(click.RichGroup):
    """The subcommands, each in the module of its name, and how errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name all subcommands, in the order in which a newcomer needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Load one subcommand; None when there is none of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"worker.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; click suggests only names of commands that are loaded, and none is."""
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as unknown:
            raise NoSuchCommand(unknown.command_name, possibilities=_COMMANDS, ctx=ctx) from None

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the options before the subcommand."""
        with exit_codes():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run the subcommand."""
        with exit_codes():
            return super().invoke(ctx)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn a refusal into one line on stderr and its exit code, and usage errors into 64."""
    try:
        yield
    except click.UsageError as failure:
        failure.exit_code = USAGE  # type: ignore[misc]  # sysexits.h; on this error only: other users of click keep their 2
        raise
    except Refusal as refusal:
        _refuse(refusal)
    except BaseExceptionGroup as group:  # task groups wrap what ends them
        refusal_in_it = _only_refusals(group)
        if refusal_in_it is None:
            raise
        _refuse(refusal_in_it)


def _refuse(refusal: Refusal) -> NoReturn:
    """Say why it does not run, in one line, and end."""
    said = "".join(c if c.isprintable() else " " for c in str(refusal))  # it may quote what a server said, or a setting
    click.echo(f"taskflow: {' '.join(said.split())}", err=True)
    raise Exit(refusal.exit_code) from refusal


def _only_refusals(group: BaseExceptionGroup[BaseException]) -> Refusal | None:
    """Give the first refusal of a group that holds nothing else; None when there is a defect among them."""
    found: list[Refusal] = []
    for one in group.exceptions:
        inner = _only_refusals(one) if isinstance(one, BaseExceptionGroup) else one
        if not isinstance(inner, Refusal):
            return None
        found.append(inner)
    return found[0]


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(program_version(), prog_name="taskflow")
@click.pass_context
def taskflow(ctx: click.Context) -> None:
    """Durable agent flows over NATS JetStream, stored in SQLite.

    Try it: `taskflow dev` starts a worker with a server of its own; `taskflow demo` tells the whole story and ends.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    taskflow(prog_name="taskflow")
    raise SystemExit(0)
