"""Ask the worker over NATS, or with `--db` the database itself: what the operators' commands have in common."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click
from click.exceptions import Exit

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import Option
from nats_taskflow.cli.exit_codes import Failed
from nats_taskflow.cli.options import CLIENT, SettingsCommand, load_config
from nats_taskflow.cli.output import Printer
from nats_taskflow.errors import BusLost, NotAllowed

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.config import Config

Json = dict[str, Any]
_WHOLE = 36
_SHORTEST = 6
_OWNER = re.compile(r"\Aagent:([^:]+):session:(.+)\Z")


class RequestRefused(Exception):
    """The worker refused; `error` is what it answered."""

    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.error = error


class OperatorSession(Protocol):
    """Somebody who answers operators' requests."""

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Return the answer to an operator's request. Raises `RequestRefused`."""
        ...

    async def as_agent(self, agent: str, verb: str, **fields: Any) -> Json:
        """Return the answer to an agent's request. Raises `RequestRefused`."""
        ...


class AskCommand(SettingsCommand):
    """A command that asks: it takes the settings of the connection, and how to say the answer."""

    sections = CLIENT

    def shared_options(self) -> list[click.Parameter]:
        """Give how to say it."""
        how = Option(
            ["output", "-o", "--output"],
            type=click.Choice(["table", "json", "jsonl", "none"]),
            default="table",
            help="How to say it: for people, or for programs.",
        )
        return [how]


class ReadCommand(AskCommand):
    """A command that only asks questions, so that a database can answer them while no worker runs."""

    def shared_options(self) -> list[click.Parameter]:
        """Add the choice of a database."""
        place = Option(["database", "--db"], metavar="FILE", help="Read this database instead of asking a worker (read-only).")
        return [*super().shared_options(), place]


def reason_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add who does it and why, which every intervention has to say (see `intervention`)."""
    why = click.option("--reason", metavar="TEXT", help="Why: it is kept with the change, and has to be said.")
    who = click.option("--as", "operator", metavar="NAME", default=None, help="Who does it; your user and host where not given.")
    return why(who(function))


def intervention(arguments: Mapping[str, Any]) -> Json:
    """Return who does it and why, as a request says it. Raises a usage error where no reason is given, unless it is only tried."""
    reason = arguments["reason"] or ("dry run" if arguments.get("dry_run") else None)
    if reason is None:
        only = "" if "dry_run" not in arguments else "; --dry-run needs none"
        raise click.UsageError(f"say why: --reason TEXT{only}")
    return {"operator": operator_name(arguments["operator"]), "reason": reason}


def agent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add that an agent may ask, with its own key and about its own flows."""
    agent = click.option("--agent", "as_agent", metavar="NAME", help="Ask as this agent, with its own credentials, about its own flows.")
    return agent(click.option("--session", metavar="ID", help="With --agent: the session; main where not given.")(function))


def operator_name(given: str | None) -> str:
    """Return who does it, in the letters that a name may have."""
    name = given or f"{_user()}@{socket.gethostname()}"
    return re.sub(r"[^A-Za-z0-9_.@-]", "_", name)[:63]


def _user() -> str:
    """Return the user's name; in a container there may be none, only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


Main = Callable[[OperatorSession, Printer], Awaitable[int | None]]


def run(arguments: Mapping[str, Any], main: Main, *, patience: float = 5.0) -> None:
    """Load the settings, open the line, and run `main`; its number, or what went wrong, is the exit code."""
    from nats_taskflow.cli.lean import load_nats
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.lazy_log import configure_at_first_use

    config = load_config(arguments)
    configure_at_first_use(_log_errors)
    load_nats()
    code = launch(_run(config, arguments, main, patience), brief=True)
    if code:
        raise Exit(code)


def _log_errors() -> None:
    """Configure the log: what a person who asks should see of the connection."""
    from nats_taskflow.cli.lean import load_structlog

    load_structlog()
    from nats_taskflow.config.tree import LogConfig
    from nats_taskflow.observe.log import configure_logging

    configure_logging(LogConfig(level="error"))


async def _run(config: Config, arguments: Mapping[str, Any], main: Main, patience: float) -> int:
    """Run `main` on a line."""
    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

    printer = Printer(arguments.get("output", "table"))
    try:
        async with _line(config, arguments, printer, patience) as line:
            return await main(line, printer) or 0
    except RequestRefused as refused:
        raise Failed(str(refused), exit_codes.of_error(refused.error["code"])) from refused
    except NoWorkerAnswer as silent:
        if silent.late:
            raise Failed(str(silent), exit_codes.TIMED_OUT) from silent
        raise Failed(f"{silent}{_instead(arguments)}", exit_codes.UNAVAILABLE) from silent
    except BusLost as lost:
        raise Failed(f"{lost}{_instead(arguments)}", lost.exit_code) from lost
    except NotAllowed as denied:
        may = arguments.get("as_agent", "") is None and ".admin." in denied.subject
        raise Failed(f"{denied}{'; or ask as an agent, with its own: --agent NAME' if may else ''}", denied.exit_code) from denied


def _instead(arguments: Mapping[str, Any]) -> str:
    """Say what a command can do where no worker can be asked."""
    return "; or read its database: --db FILE" if "database" in arguments else ""


@asynccontextmanager
async def _line(config: Config, arguments: Mapping[str, Any], printer: Printer, patience: float) -> AsyncIterator[OperatorSession]:
    """Open whichever line is asked for: to a database, or to a worker, as an operator or as an agent."""
    database, agent, session = (arguments.get(name) for name in ("database", "as_agent", "session"))
    if session is not None and agent is None:
        raise click.UsageError("--session goes with --agent")
    if database is not None:
        if agent is not None:
            raise click.UsageError("--agent asks a worker, --db a file: say one of them")
        from nats_taskflow.cli.offline import offline

        with offline(config, database, printer) as line:
            yield line
        return
    async with connected(config) as client:
        if agent is None:
            yield Online(config, client, patience)
            return
        from nats_taskflow.cli.agent_session import AgentSession

        yield AgentSession(config, client, patience, agent, session or "main")


@asynccontextmanager
async def connected(config: Config) -> AsyncIterator[InspectClient]:
    """Connect to NATS. Raises `BusLost` soon."""
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.bus.nats.options import nats_options

    async with InspectClient(nats_options(config.nats)) as client:
        yield client


class Online:
    """A worker over NATS. `agent`: whose flows are asked about; any agent's by default."""

    agent = "*"

    def __init__(self, config: Config, client: InspectClient, patience: float) -> None:
        from nats_taskflow.wire.subjects import Subjects

        self.config = config
        self.client = client
        self.subjects = Subjects(config.subjects.prefix)
        self._patience = patience

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Ask on `admin`."""
        return await self._asked(self.subjects.admin(verb), fields)

    async def as_agent(self, agent: str, verb: str, **fields: Any) -> Json:
        """Ask on `api`."""
        from nats_taskflow.wire.subjects import is_token

        if not is_token(agent):
            raise click.UsageError(f"--agent takes 1 to 63 characters A-Z a-z 0-9 _ -, not {agent!r}")
        return await self._asked(self.subjects.api(agent, verb), fields)

    async def _asked(self, subject: str, fields: Json) -> Json:
        """Ask, and tell an answer from a refusal."""
        import msgspec

        from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

        body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
        try:
            answer: Json = msgspec.json.decode(await self.client.ask(subject, body, within=self._patience))
        except NoWorkerAnswer as silent:
            if silent.late:
                raise
            raise NoWorkerAnswer(f"no worker answers on {subject} ({self.client.address}); start one") from silent
        if not answer["ok"]:
            raise RequestRefused(answer["error"])
        return answer


async def whole_id(line: OperatorSession, part: str) -> str:
    """Return the one flow id that begins or ends like this. Raises `Failed` with those there are, or that there is none."""
    if len(part) == _WHOLE:
        return part
    if len(part) < _SHORTEST or not re.fullmatch(r"[0-9A-Fa-f-]+", part):
        raise click.UsageError(f"{part!r} is no flow id: give all of it, or at least {_SHORTEST} characters of its beginning or end")
    ids: Sequence[str] = (await line.ask("find", part=part))["ids"]
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise Failed(f"no flow id begins or ends with {part}", exit_codes.NOT_FOUND)
    shown = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")  # noqa: PLR2004 - ten fit a terminal
    raise Failed(f"{part} is not the only one: {shown}", exit_codes.USAGE)


async def whole_ids(line: OperatorSession, parts: Sequence[str]) -> list[str]:
    """Return the flow ids; `-` stands for those on stdin, one on each line."""
    given = [word for part in parts for word in (sys.stdin.read().split() if part == "-" else [part])]
    if not given:
        raise click.UsageError("no flow id was given")
    return [await whole_id(line, part) for part in given]


async def owner_of(line: OperatorSession, flow_id: str, agent: str | None, session: str | None) -> tuple[str, str]:
    """Return agent and session to act as: those given, else the flow's owner."""
    if agent is not None:
        return agent, session or "main"
    owner = (await line.ask("show", flow_id=flow_id))["flow"]["owner_session_key"]
    found = _OWNER.match(owner)
    if found is None:
        raise click.UsageError(f"flow {flow_id} belongs to {owner}, which is no agent: say --agent")
    return found[1], session or found[2]


async def pages(line: OperatorSession, verb: str, key: str, limit: int, fields: Mapping[str, Any]) -> tuple[list[Json], str | None]:
    """Collect up to `limit` items over as many pages as it takes; returns them and the cursor of what follows."""
    items: list[Json] = []
    cursor = fields.get("cursor")
    while True:
        page = await line.ask(verb, **{**fields, "cursor": cursor, "limit": min(limit - len(items), 1000)})
        items += page[key]
        cursor = page["next_cursor"]
        if cursor is None or len(items) >= limit:
            return items, cursor
