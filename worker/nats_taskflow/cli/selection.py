"""Select flows by id or by a filter.

Those of a filter are counted, and asked about, before anything is done to them.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.exceptions import Exit

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.exit_codes import CommandFailed
from nats_taskflow.cli.options import aliased_option
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.session import collect_pages
from nats_taskflow.text import counted

STATUSES = ("created", "running", "waiting", "finished", "failed", "cancelled")
KINDS = ("timer", "external_event", "manual", "flow", "any_of", "all_of", "at_least")
FILTERS = ("status", "controller", "owner", "step", "topic", "correlation_id", "kind", "older_than", "since", "goal")
RATE = 50.0
_MAX_SELECTED = 1_000_000
_ID_LENGTH = 36
_MIN_PART = 6
_SHOWN = 10
_STEERABLE = {"resume": ("waiting",), "cancel": ("created", "running", "waiting"), "fail": ("running", "waiting")}
"""The statuses from which a verb can steer a flow: a filter leaves out the others."""


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of a list of flows."""
    options = (
        click.option("--status", type=click.Choice(STATUSES), help="Only flows in this status."),
        click.option("--older-than", metavar="DURATION", help="Only flows that last changed longer ago than this (1h 30m)."),
        click.option("--since", metavar="TIME", help="Only flows that changed since then: a duration ago (1h), or an RFC 3339 time."),
        click.option("--goal", metavar="TEXT", help="Only flows with this in their goal."),
    )
    for option in reversed(options):
        function = option(function)
    return wait_options(function)


def wait_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters by owner and by wait, which a list of waits has, too."""
    options = (
        aliased_option("--controller", "--controller-id", metavar="ID", help="Only flows of this controller; * is any text (kate/*)."),
        click.option("--owner", metavar="KEY", help="Only flows of this owner (agent:kate:session:main)."),
        aliased_option("--step", "--current-step", metavar="LABEL", help="Only flows at this step."),
        click.option("--topic", metavar="TOPIC", help="Only flows that wait for a reply on this topic."),
        aliased_option("--correlation-id", "--corr", metavar="ID", help="Only flows that wait for a reply with this correlation id."),
        click.option("--kind", type=click.Choice(KINDS), metavar="KIND", help=f"Only flows with this kind of wait: {', '.join(KINDS)}."),
    )
    for option in reversed(options):
        function = option(function)
    return function


yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask before it is done to all that the filter finds.")


def bulk_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters, and what makes it safe to act on all that they match."""
    function = yes_option(function)
    rate = click.option("--rate", default=RATE, show_default=True, type=click.FloatRange(0.01, 1000), help="At most so many in a second.")
    return filter_options(click.option("--dry-run", is_flag=True, help="Only say which.")(rate(function)))


def read_filter(arguments: Mapping[str, Any]) -> Json:
    """Return the filter among the arguments; empty where there is none."""
    return {name: arguments[name] for name in FILTERS if arguments[name] is not None}


async def find_flow_id(session: OperatorSession, part: str) -> str:
    """Return the one flow id that begins or ends with `part`.

    Raises `CommandFailed` where there is none, or more than one.
    """
    if len(part) == _ID_LENGTH:
        return part
    if len(part) < _MIN_PART or not re.fullmatch(r"[0-9A-Fa-f-]+", part):
        raise click.UsageError(f"{part!r} is no flow id: give all of it, or at least {_MIN_PART} characters of its beginning or end")
    ids: Sequence[str] = (await session.ask("find", part=part))["ids"]
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise CommandFailed(f"no flow id begins or ends with {part}", exit_codes.NOT_FOUND)
    shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
    raise CommandFailed(f"{part} is not the only one: {shown}", exit_codes.USAGE)


async def find_flow_ids(session: OperatorSession, parts: Sequence[str]) -> list[str]:
    """Return the flow ids; `-` stands for those on stdin, one on each line."""
    words = [word for part in parts for word in (sys.stdin.read().split() if part == "-" else [part])]
    if not words:
        raise click.UsageError("no flow id was given")
    return [await find_flow_id(session, word) for word in words]


async def select_flows(session: OperatorSession, verb: str, flows: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Return the ids of the flows to act on.

    They are those named, or those that match the filter and can be steered.
    """
    chosen = read_filter(arguments)
    if chosen and flows:
        raise click.UsageError("name flows, or say which with a filter: not both")
    if flows:
        return await find_flow_ids(session, flows)
    if not chosen:
        raise click.UsageError(f"which flows? Name them, or give a filter such as --status waiting (taskflow flow {verb} --help)")
    matches, _ = await collect_pages(session, "list", "flows", _MAX_SELECTED, chosen)
    return [flow["id"] for flow in matches if flow["status"] in _STEERABLE[verb]]


def confirm_selection(verb: str, count: int, arguments: Mapping[str, Any]) -> bool:
    """Ask whether to act on so many flows; return the answer.

    Does not ask where they were named or --yes was given. Raises as `ask_to_confirm` does.
    """
    if arguments["yes"] or not read_filter(arguments) or count == 0:
        return True
    return ask_to_confirm(verb, counted(count, "flow"), "look with --dry-run, then say --yes")


def ask_to_confirm(verb: str, what: str, otherwise: str) -> bool:
    """Ask a person whether to go on.

    Raises `Exit` on Ctrl-C and Ctrl-D. Without a terminal raises a usage error that says `otherwise`.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{verb} would be done to {what}: {otherwise}")
    # The event loop stands still at the prompt. Its handler of Ctrl-C only asks the loop to end, which it could not do.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(f"{verb} {what}?", err=True)
    except click.Abort:
        click.echo("\nNothing was done.", err=True)
        raise Exit(exit_codes.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)
