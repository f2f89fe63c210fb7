"""Run an operator's command: choose who answers, and turn errors into exit codes.

An error is one line on stderr.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.exit_codes import CommandFailed
from nats_taskflow.cli.online import AgentSession, OnlineSession, connect
from nats_taskflow.cli.options import load_config
from nats_taskflow.cli.output import Printer
from nats_taskflow.cli.protocol import Json, OperatorSession, WorkerRefusal
from nats_taskflow.errors import BusLost, NotAllowed

if TYPE_CHECKING:
    from nats_taskflow.config import Config

Main = Callable[[OperatorSession, Printer], Awaitable[int | None]]
_PAGE = 1000


def run(arguments: Mapping[str, Any], main: Main, *, patience: float = 5.0) -> None:
    """Load the settings, open a session, and run `main`.

    Exits with the number that it returns, or with the code of what went wrong.
    """
    from nats_taskflow.cli.light_imports import import_nats
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.lazy_log import configure_at_first_use

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
    from nats_taskflow.config.settings import LogConfig
    from nats_taskflow.observe.log import configure_logging

    configure_logging(LogConfig(level="error"))


async def _run(config: Config, arguments: Mapping[str, Any], main: Main, patience: float) -> int:
    """Run `main` in a session. Raises `CommandFailed` with what to do instead."""
    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

    printer = Printer(arguments.get("output", "table"))
    read_instead = "; or read its database: --db FILE" if "database" in arguments else ""
    try:
        async with open_session(config, arguments, printer, patience) as session:
            return await main(session, printer) or 0
    except WorkerRefusal as refusal:
        raise CommandFailed(str(refusal), exit_codes.for_error(refusal.error["code"])) from refusal
    except NoWorkerAnswer as silence:
        if silence.late:
            raise CommandFailed(str(silence), exit_codes.TIMED_OUT) from silence
        raise CommandFailed(f"{silence}{read_instead}", exit_codes.UNAVAILABLE) from silence
    except BusLost as loss:
        raise CommandFailed(f"{loss}{read_instead}", loss.exit_code) from loss
    except NotAllowed as denial:
        may = arguments.get("as_agent", "") is None and ".admin." in denial.subject
        ask_instead = "; or ask as an agent, with its own: --agent NAME" if may else ""
        raise CommandFailed(f"{denial}{ask_instead}", denial.exit_code) from denial


@asynccontextmanager
async def open_session(config: Config, arguments: Mapping[str, Any], printer: Printer, patience: float) -> AsyncIterator[OperatorSession]:
    """Open the database of `--db`, or else connect to a worker.

    With `--agent` the session asks as that agent, else as an operator.
    """
    database, agent, session_id = (arguments.get(name) for name in ("database", "as_agent", "session_id"))
    if session_id is not None and agent is None:
        raise click.UsageError("--session goes with --agent")
    if database is not None and agent is not None:
        raise click.UsageError("--agent asks a worker, --db a file: say one of them")
    if database is not None:
        from nats_taskflow.cli.offline import open_database

        with open_database(config, database, printer) as session:
            yield session
        return
    async with connect(config) as client:
        if agent is None:
            yield OnlineSession(config, client, patience)
        else:
            yield AgentSession(config, client, patience, agent, session_id or "main")


async def collect_pages(
    session: OperatorSession, verb: str, key: str, limit: int, fields: Mapping[str, Any]
) -> tuple[list[Json], str | None]:
    """Collect up to `limit` items over as many pages as it takes.

    Returns them and the cursor of what follows.
    """
    items: list[Json] = []
    cursor = fields.get("cursor")
    while True:
        page = await session.ask(verb, **{**fields, "cursor": cursor, "limit": min(limit - len(items), _PAGE)})
        items += page[key]
        cursor = page["next_cursor"]
        if cursor is None or len(items) >= limit:
            return items, cursor
