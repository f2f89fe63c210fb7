"""`taskflow flow resume|cancel|fail|release`: steer flows as an operator.

The journal keeps who did it and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import AskCommand
from nats_taskflow.cli.flow.act import cancelled_children, json_value, print_outcome
from nats_taskflow.cli.identity import agent_options, read_intervention, reason_option
from nats_taskflow.cli.output import Printer, mark_flow, progress, short_id
from nats_taskflow.cli.protocol import Json, OperatorSession, WorkerRefusal
from nats_taskflow.cli.selection import FILTERS, RATE, bulk_options, confirm_selection, read_filter, select_flows
from nats_taskflow.cli.session import run
from nats_taskflow.text import counted

_REVISION = click.option("--expected-revision", type=int, metavar="N", help="Refuse if the flow is not at this revision.")
_COMMAND = click.option("--command-id", metavar="ID", help="Repeat with the same id: the same outcome, done once. For one flow only.")
_FLOWS = click.argument("flows", nargs=-1, metavar="[FLOW…]")


_COLUMNS: dict[str, Callable[[Json], str]] = {
    "FLOW": lambda a: short_id(a["flow"]["id"]),
    "STATUS": lambda a: mark_flow(a["flow"]),
    "REV": lambda a: str(a["flow"]["revision"]),
    "ALSO": cancelled_children,
}


def _used_columns(columns: Mapping[str, Callable[[Json], str]], answers: Sequence[Json]) -> dict[str, Callable[[Json], str]]:
    return {name: show for name, show in columns.items() if any(map(show, answers))}


def _steer(verb: str, flows: Sequence[str], fields: Json, arguments: Mapping[str, Any]) -> None:
    """Steer each of the flows. One that is refused does not stop the others."""
    fields = fields | read_intervention(arguments)

    async def main(session: OperatorSession, printer: Printer) -> int:
        """Steer them, and print what became of each."""
        ids = await select_flows(session, verb, flows, arguments)
        if arguments["dry_run"]:
            return await _preview(session, verb, ids, printer)
        if (read_filter(arguments) or len(ids) > 1) and (fields.get("command_id") or fields.get("expected_revision") is not None):
            raise click.UsageError("--command-id and --expected-revision are about one flow")
        if not confirm_selection(verb, len(ids), arguments):
            printer.note("Nothing was done.")
            return exit_codes.DONE
        if len(ids) == 1:
            answers = [await session.ask(verb, flow_id=ids[0], **fields)]
            refusals: list[WorkerRefusal] = []
        else:
            answers, refusals = await _steer_each(session, verb, ids, fields, printer, rate=arguments["rate"])
        if printer.for_people and len(answers) == 1:
            print_outcome(answers[0], printer)
        else:
            printer.items(answers, _used_columns(_COLUMNS, answers), empty="None was done.")
        if not refusals:
            return exit_codes.DONE
        return exit_codes.PARTIAL if answers else exit_codes.for_error(refusals[0].error["code"])

    run(arguments, main)


async def _preview(session: OperatorSession, verb: str, ids: Sequence[str], printer: Printer) -> int:
    """Print which flows would be steered."""
    answers = [await session.ask("show", flow_id=flow_id) for flow_id in ids]
    columns = {**_COLUMNS, "CONTROLLER": lambda a: a["flow"]["controller_id"], "STEP": lambda a: a["flow"]["current_step"]}
    printer.items(answers, _used_columns(columns, answers), empty="No flow is meant.")
    printer.note(f"{verb} would be done to {counted(len(ids), 'flow')}; nothing was done.")
    return exit_codes.DONE


async def _steer_each(
    session: OperatorSession, verb: str, ids: Sequence[str], fields: Json, printer: Printer, *, rate: float
) -> tuple[list[Json], list[WorkerRefusal]]:
    """Steer many flows, at most `rate` in a second.

    Refusals are printed at once. Returns the answers and the refusals.
    """
    import asyncio

    answers: list[Json] = []
    refusals: list[WorkerRefusal] = []
    clock = asyncio.get_running_loop().time
    began = clock()
    with progress(verb, len(ids), shown=printer.for_people) as count:
        for number, flow_id in enumerate(ids):
            await asyncio.sleep(max(began + number / rate - clock(), 0.0))
            try:
                answers.append(await session.ask(verb, flow_id=flow_id, **fields))
            except WorkerRefusal as refusal:
                refusals.append(refusal)
                click.echo(f"taskflow: {refusal}", err=True)
            count(1)
    return answers, refusals


@click.command(cls=AskCommand)
@_FLOWS
@bulk_options
@click.option("--patch", metavar="JSON|-", callback=json_value, help="Merge this object into the state.")
@click.option("--leaf", metavar="NAME", help="Answer only this part of a combined wait.")
@_REVISION
@_COMMAND
@reason_option
@agent_options
def resume(
    *, flows: tuple[str, ...], patch: Any, leaf: str | None, expected_revision: int | None, command_id: str | None, **arguments: Any
) -> None:
    """Resume waiting flows, whatever they wait for: those named (`-` reads ids from stdin), or all that a filter finds."""
    number_or_name = int(leaf) if leaf is not None and leaf.isdigit() else leaf
    fields = {"patch": patch, "leaf": number_or_name, "expected_revision": expected_revision, "command_id": command_id}
    _steer("resume", flows, fields, arguments)


@click.command(cls=AskCommand)
@_FLOWS
@bulk_options
@click.option("--request", is_flag=True, help="Only ask for it: a running flow winds down by itself.")
@click.option("--no-cascade", is_flag=True, help="Leave the children alone.")
@_REVISION
@_COMMAND
@reason_option
@agent_options
def cancel(
    *, flows: tuple[str, ...], request: bool, no_cascade: bool, expected_revision: int | None, command_id: str | None, **arguments: Any
) -> None:
    """Cancel flows, and their children with them: those named (`-` reads ids from stdin), or all that a filter finds."""
    how = {"mode": "request" if request else "now", "cascade": not no_cascade}
    _steer("cancel", flows, {**how, "expected_revision": expected_revision, "command_id": command_id}, arguments)


@click.command(cls=AskCommand)
@_FLOWS
@bulk_options
@_REVISION
@_COMMAND
@reason_option
@agent_options
def fail(*, flows: tuple[str, ...], expected_revision: int | None, command_id: str | None, **arguments: Any) -> None:
    """End flows badly; the reason is the failure's: those named (`-` reads ids from stdin), or all that a filter finds."""
    _steer("fail", flows, {"expected_revision": expected_revision, "command_id": command_id}, arguments)


@click.command(cls=AskCommand)
@click.argument("flows", nargs=-1, required=True, metavar="FLOW…")
@reason_option
def release(*, flows: tuple[str, ...], **arguments: Any) -> None:
    """Set flows free again that were set aside, once their rows can be read."""
    unfiltered = dict.fromkeys(FILTERS) | {"dry_run": False, "yes": True, "rate": RATE}
    _steer("release", flows, {}, {**unfiltered, **arguments})


COMMANDS = (resume, cancel, fail, release)
