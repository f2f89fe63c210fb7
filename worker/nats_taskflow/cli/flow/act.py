"""`taskflow flow start|run|advance|wait|delegate|finish`: act for a flow's agent.

The commands go on the agent's own subject.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from nats_taskflow.cli.command import AskCommand
from nats_taskflow.cli.identity import split_owner
from nats_taskflow.cli.options import aliased_option
from nats_taskflow.cli.output import Printer, format_wait, mark_status
from nats_taskflow.cli.protocol import Json, OperatorSession
from nats_taskflow.cli.selection import find_flow_id
from nats_taskflow.cli.session import run
from nats_taskflow.text import counted

_START = ("controller_id", "goal", "state", "current_step", "flow_id", "hold", "command_id", "session_id")
"""The fields of a start, all of them options."""
_ENDINGS = click.Choice(["resume", "fail", "cancel"])


def _agent_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add whose subject is used, and what makes a repeat safe."""
    agent = click.option("--agent", "as_agent", metavar="NAME", help="Act as this agent; the flow's owner where not given.")
    session = click.option("--session", "session_id", metavar="ID", help="The agent's session; the owner's, or main.")
    command = click.option("--command-id", metavar="ID", help="Repeat with the same id: the same outcome, done once.")
    return agent(session(command(function)))


def json_value(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
    """Read the JSON of an option, or of stdin for `-`. Raises a usage error."""
    if text is None:
        return None
    written = sys.stdin.read() if text == "-" else text
    try:
        return json.loads(written)
    except ValueError as error:
        raise click.BadParameter(f"{written[:60]!r} is no JSON: {error}") from error


def cancelled_children(answer: Mapping[str, Any]) -> str:
    """Return how many children are cancelled with the flow.

    The children of those still pending are not counted yet, hence `or more`.
    """
    children = answer.get("cancelled_children")
    if not children:
        return ""
    more = "or more " if children["pending"] else ""
    return counted(children["done"] + children["pending"], f"{more}child", f"{more}children")


def print_outcome(answer: Mapping[str, Any], printer: Printer) -> None:
    """Print how the flow is now."""
    flow = answer["flow"]
    fields = [
        ("flow", flow["id"]),
        ("status", mark_status(flow["status"])),
        ("step", flow["current_step"]),
        ("revision", str(flow["revision"])),
    ]
    if flow["wait"]:
        fields.append(("waits on", format_wait(flow["wait"])))
    if children := cancelled_children(answer):
        fields.append(("also", children))
    printer.item(answer, fields)


async def _owner_of(session: OperatorSession, flow_id: str, agent: str | None, session_id: str | None) -> tuple[str, str]:
    """Return agent and session to act as: those named, else the flow's owner."""
    if agent is not None:
        return agent, session_id or "main"
    owner = (await session.ask("show", flow_id=flow_id))["flow"]["owner_session_key"]
    parts = split_owner(owner)
    if parts is None:
        raise click.UsageError(f"flow {flow_id} belongs to {owner}, which is no agent: say --agent")
    return parts[0], session_id or parts[1]


def _act(verb: str, flow: str, fields: Json, arguments: Mapping[str, Any]) -> None:
    """Send a command as the flow's agent, and print the outcome."""

    async def main(session: OperatorSession, printer: Printer) -> None:
        """Find the flow and its owner, and send the command."""
        flow_id = await find_flow_id(session, flow)
        agent, session_id = await _owner_of(session, flow_id, arguments["as_agent"], arguments["session_id"])
        outcome = await session.ask_as_agent(
            agent, verb, flow_id=flow_id, session_id=session_id, command_id=arguments["command_id"], **fields
        )
        print_outcome(outcome, printer)

    run(arguments, main)


@click.command(cls=AskCommand)
@click.option("--agent", metavar="NAME", required=True, help="The agent that the flow will belong to.")
@click.option("--session", "session_id", metavar="ID", default="main", show_default=True, help="The agent's session.")
@aliased_option("--controller-id", "--controller", metavar="ID", required=True, help="Who asks for it, logically (kate/inbox-triage).")
@click.option("--goal", metavar="TEXT", required=True, help="What it is for, for people.")
@click.option("--state", metavar="JSON|-", callback=json_value, help="The state to begin with.")
@aliased_option("--current-step", "--step", metavar="LABEL", help="The step to begin with.")
@aliased_option("--flow-id", "--id", metavar="UUID", help="The flow's id; a new one where not given.")
@click.option("--hold", is_flag=True, help="Do not run it yet.")
@click.option("--command-id", metavar="ID", help="Repeat with the same id: the same outcome, done once.")
def start(*, agent: str, **arguments: Any) -> None:
    """Start a flow for an agent."""
    fields = {name: arguments.pop(name) for name in _START}

    async def main(session: OperatorSession, printer: Printer) -> None:
        print_outcome(await session.ask_as_agent(agent, "start", **fields), printer)

    run(arguments, main)


@click.command("run", cls=AskCommand)
@click.argument("flow")
@_agent_options
def run_(*, flow: str, **arguments: Any) -> None:
    """Run a flow that was started with --hold."""
    _act("run", flow, {}, arguments)


@click.command(cls=AskCommand)
@click.argument("flow")
@click.option("--patch", metavar="JSON|-", callback=json_value, help="Merge this object into the state.")
@aliased_option("--current-step", "--step", metavar="LABEL", help="Name the next step.")
@_agent_options
def advance(*, flow: str, patch: Any, current_step: str | None, **arguments: Any) -> None:
    """Merge into a flow's state, and name the next step."""
    _act("advance", flow, {"patch": patch, "current_step": current_step}, arguments)


@click.command(cls=AskCommand)
@click.argument("flow")
@click.option("--timer", metavar="TIME", help="Until this time (RFC 3339), or so long from now on (2h).")
@click.option("--topic", metavar="TOPIC", help="For a reply on this topic.")
@aliased_option("--correlation-id", "--corr", metavar="ID", help="With this correlation id; the worker makes one where not given.")
@click.option("--manual", metavar="PROMPT", help="For a person, who is asked this.")
@aliased_option("--wait-condition", "--condition", metavar="JSON|-", callback=json_value, help="For any wait condition (docs/waiting.md).")
@click.option("--timeout", metavar="DURATION", help="Not longer than this.")
@click.option("--on-timeout", type=_ENDINGS, help="What then.")
@_agent_options
def wait(*, flow: str, **arguments: Any) -> None:
    """Park a flow until something happens."""
    _act("wait", flow, {"wait_condition": _condition(arguments)}, arguments)


def _condition(arguments: Mapping[str, Any]) -> Json:
    """Return the wait condition that the options describe.

    Raises a usage error where they describe none, or several.
    """
    options = {name: value for name, value in arguments.items() if value is not None}
    chosen = [name for name in ("timer", "topic", "manual", "wait_condition") if name in options]
    if len(chosen) != 1:
        raise click.UsageError("say one of --timer, --topic, --manual and --wait-condition")
    bounds: Json = {name: options[name] for name in ("timeout", "on_timeout") if name in options}
    if "correlation_id" in options and chosen[0] != "topic":
        raise click.UsageError("--correlation-id goes with --topic")
    match chosen[0]:
        case "timer":
            if bounds:
                raise click.UsageError("a timer ends by itself: --timeout and --on-timeout go with what may not come")
            return {"kind": "timer", "at" if options["timer"][4:5] == "-" else "after": options["timer"]}
        case "topic":
            pair: Json = {name: options[name] for name in ("topic", "correlation_id") if name in options}
            return {"kind": "external_event", **pair, **bounds}
        case "manual":
            return {"kind": "manual", "prompt": options["manual"], **bounds}
        case _:
            condition = options["wait_condition"]
            return {**condition, **bounds} if isinstance(condition, dict) else condition


@click.command(cls=AskCommand)
@click.argument("flow")
@click.option("--to", required=True, metavar="SUBJECT", help="Whom to ask: any NATS responder.")
@click.option("--payload", metavar="JSON|-", callback=json_value, help="What to ask.")
@click.option("--timeout", metavar="DURATION", help="Wait not longer than this.")
@click.option("--on-timeout", type=_ENDINGS, help="What then.")
@_agent_options
def delegate(*, flow: str, to: str, payload: Any, timeout: str | None, on_timeout: str | None, **arguments: Any) -> None:
    """Ask a delegate and park the flow until the answer comes, atomically."""
    _act("delegate", flow, {"to": to, "payload": payload, "timeout": timeout, "on_timeout": on_timeout}, arguments)


@click.command(cls=AskCommand)
@click.argument("flow")
@aliased_option("--final-state", "--state", metavar="JSON|-", callback=json_value, help="Merge this object into the state at the end.")
@_agent_options
def finish(*, flow: str, final_state: Any, **arguments: Any) -> None:
    """End a flow well."""
    _act("finish", flow, {"final_state": final_state}, arguments)


COMMANDS = (start, run_, advance, wait, delegate, finish)
