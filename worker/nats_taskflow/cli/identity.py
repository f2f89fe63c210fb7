"""Who asks: an operator with a reason, or an agent in a session."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

import click

from nats_taskflow.cli.options import aliased_option
from nats_taskflow.cli.protocol import Json


def reason_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add who intervenes and why, for `read_intervention`."""
    reason = click.option("--reason", metavar="TEXT", help="Why: it is kept with the change, and has to be said.")
    operator = aliased_option("--operator", "--as", metavar="NAME", help="Who does it; your user and host where not given.")
    return reason(operator(function))


def read_intervention(arguments: Mapping[str, Any]) -> Json:
    """Return the fields that say who intervenes and why.

    Raises a usage error without a reason, except for a dry run.
    """
    reason = arguments["reason"] or ("dry run" if arguments.get("dry_run") else None)
    if reason is None:
        only = "" if "dry_run" not in arguments else "; --dry-run needs none"
        raise click.UsageError(f"say why: --reason TEXT{only}")
    return {"operator": operator_name(arguments["operator"]), "reason": reason}


def operator_name(name: str | None) -> str:
    """Return the operator's name, by default user and host.

    Characters that a name may not have are replaced.
    """
    name = name or f"{_user()}@{socket.gethostname()}"
    return re.sub(r"[^A-Za-z0-9_.@-]", "_", name)[:63]


def _user() -> str:
    """Return the user's name; in a container there may be none, only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def agent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let an agent ask, with its own key and about its own flows."""
    agent = click.option("--agent", "as_agent", metavar="NAME", help="Ask as this agent, with its own credentials, about its own flows.")
    session = click.option("--session", "session_id", metavar="ID", help="With --agent: the session; main where not given.")
    return agent(session(function))


def split_owner(key: str) -> tuple[str, str] | None:
    """Return agent and session id of `agent:<agent>:session:<session_id>`.

    None for an owner that is no agent.
    """
    match key.split(":", 3):
        case ["agent", agent, "session", session_id] if agent and session_id:
            return agent, session_id
        case _:
            return None
