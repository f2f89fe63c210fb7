"""Ask the worker over NATS, or with `--db` the database itself: what the operators' commands have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.exit_codes import CommandFailed
from nats_taskflow.cli.online import OnlineSession, connect
from nats_taskflow.cli.options import load_config
from nats_taskflow.cli.output import Printer
from nats_taskflow.cli.protocol import Json, OperatorSession, RequestRefused
from nats_taskflow.errors import BusLost, NotAllowed

if TYPE_CHECKING:
    from nats_taskflow.config import Config

Main = Callable[[OperatorSession, Printer], Awaitable[int | None]]


def run(arguments: Mapping[str, Any], main: Main, *, patience: float = 5.0) -> None:
    """Load the settings, open the line, and run `main`; its number, or what went wrong, is the exit code."""
    from nats_taskflow.cli.light_imports import import_nats
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.observe.lazy_log import configure_at_first_use

    config = load_config(arguments)
    configure_at_first_use(_log_errors)
    import_nats()
    code = launch(_run(config, arguments, main, patience), brief=True)
    if code:
        raise Exit(code)


def _log_errors() -> None:
    """Configure the log: what a person who asks should see of the connection."""
    from nats_taskflow.cli.light_imports import import_structlog

    import_structlog()
    from nats_taskflow.config.tree import LogConfig
    from nats_taskflow.observe.log import configure_logging

    configure_logging(LogConfig(level="error"))


async def _run(config: Config, arguments: Mapping[str, Any], main: Main, patience: float) -> int:
    """Run `main` on a line."""
    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

    printer = Printer(arguments.get("output", "table"))
    try:
        async with open_session(config, arguments, printer, patience) as line:
            return await main(line, printer) or 0
    except RequestRefused as refused:
        raise CommandFailed(str(refused), exit_codes.for_error(refused.error["code"])) from refused
    except NoWorkerAnswer as silent:
        if silent.late:
            raise CommandFailed(str(silent), exit_codes.TIMED_OUT) from silent
        raise CommandFailed(f"{silent}{_instead(arguments)}", exit_codes.UNAVAILABLE) from silent
    except BusLost as lost:
        raise CommandFailed(f"{lost}{_instead(arguments)}", lost.exit_code) from lost
    except NotAllowed as denied:
        may = arguments.get("as_agent", "") is None and ".admin." in denied.subject
        raise CommandFailed(f"{denied}{'; or ask as an agent, with its own: --agent NAME' if may else ''}", denied.exit_code) from denied


def _instead(arguments: Mapping[str, Any]) -> str:
    """Say what a command can do where no worker can be asked."""
    return "; or read its database: --db FILE" if "database" in arguments else ""


@asynccontextmanager
async def open_session(config: Config, arguments: Mapping[str, Any], printer: Printer, patience: float) -> AsyncIterator[OperatorSession]:
    """Open whichever line is asked for: to a database, or to a worker, as an operator or as an agent."""
    database, agent, session_id = (arguments.get(name) for name in ("database", "as_agent", "session_id"))
    if session_id is not None and agent is None:
        raise click.UsageError("--session goes with --agent")
    if database is not None:
        if agent is not None:
            raise click.UsageError("--agent asks a worker, --db a file: say one of them")
        from nats_taskflow.cli.offline import open_database

        with open_database(config, database, printer) as line:
            yield line
        return
    async with connect(config) as client:
        if agent is None:
            yield OnlineSession(config, client, patience)
            return
        from nats_taskflow.cli.online import AgentSession

        yield AgentSession(config, client, patience, agent, session_id or "main")


async def collect_pages(line: OperatorSession, verb: str, key: str, limit: int, fields: Mapping[str, Any]) -> tuple[list[Json], str | None]:
    """Collect up to `limit` items over as many pages as it takes; returns them and the cursor of what follows."""
    items: list[Json] = []
    cursor = fields.get("cursor")
    while True:
        page = await line.ask(verb, **{**fields, "cursor": cursor, "limit": min(limit - len(items), 1000)})
        items += page[key]
        cursor = page["next_cursor"]
        if cursor is None or len(items) >= limit:
            return items, cursor
