"""`taskflow flow resume|cancel|fail|release`: steer flows as an operator; the journal keeps who and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.command import AskCommand
from nats_taskflow.cli.flow.act import cancelled_children, json_value, print_outcome
from nats_taskflow.cli.identity import agent_options, read_intervention, reason_option
from nats_taskflow.cli.output import Printer, mark_flow, progress, short_id
from nats_taskflow.cli.protocol import Json, OperatorSession, RequestRefused
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


def _filled(columns: Mapping[str, Callable[[Json], str]], answers: Sequence[Json]) -> dict[str, Callable[[Json], str]]:
    """Leave out the columns in which nothing stands."""
    return {name: show for name, show in columns.items() if any(map(show, answers))}


def _steer(verb: str, flows: Sequence[str], fields: Json, arguments: Mapping[str, Any]) -> None:
    """Do it to each flow; one that is refused does not keep the others from it."""
    said = fields | read_intervention(arguments)

    async def main(line: OperatorSession, printer: Printer) -> int:
        """Do it, and say what became of each."""
        ids = await select_flows(line, verb, flows, arguments)
        if arguments["dry_run"]:
            return await _shown(line, verb, ids, printer)
        if (read_filter(arguments) or len(ids) > 1) and (fields.get("command_id") or fields.get("expected_revision") is not None):
            raise click.UsageError("--command-id and --expected-revision are about one flow")
        if not confirm_selection(verb, len(ids), arguments):
            printer.note("Nothing was done.")
            return exit_codes.DONE
        if len(ids) == 1:
            answers = [await line.ask(verb, flow_id=ids[0], **said)]
            refused: list[RequestRefused] = []
        else:
            answers, refused = await _each(line, verb, ids, said, printer, rate=arguments["rate"])
        if printer.for_people and len(answers) == 1:
            print_outcome(answers[0], printer)
        else:
            printer.items(answers, _filled(_COLUMNS, answers), empty="None was done.")
        if not refused:
            return exit_codes.DONE
        return exit_codes.PARTIAL if answers else exit_codes.for_error(refused[0].error["code"])

    run(arguments, main)


async def _shown(line: OperatorSession, verb: str, ids: Sequence[str], printer: Printer) -> int:
    """Say to which flows it would be done."""
    answers = [await line.ask("show", flow_id=flow_id) for flow_id in ids]
    columns = {**_COLUMNS, "CONTROLLER": lambda a: a["flow"]["controller_id"], "STEP": lambda a: a["flow"]["current_step"]}
    printer.items(answers, _filled(columns, answers), empty="No flow is meant.")
    printer.note(f"{verb} would be done to {counted(len(ids), 'flow')}; nothing was done.")
    return exit_codes.DONE


async def _each(
    line: OperatorSession, verb: str, ids: Sequence[str], said: Json, printer: Printer, *, rate: float
) -> tuple[list[Json], list[RequestRefused]]:
    """Do it to many flows, not faster than `rate` in a second; each refusal is said at once."""
    import asyncio

    answers: list[Json] = []
    refused: list[RequestRefused] = []
    clock = asyncio.get_running_loop().time
    began = clock()
    with progress(verb, len(ids), shown=printer.for_people) as tell:
        for number, flow_id in enumerate(ids):
            await asyncio.sleep(max(began + number / rate - clock(), 0.0))
            try:
                answers.append(await line.ask(verb, flow_id=flow_id, **said))
            except RequestRefused as no:
                refused.append(no)
                click.echo(f"taskflow: {no}", err=True)
            tell(1)
    return answers, refused


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
    part = int(leaf) if leaf is not None and leaf.isdigit() else leaf
    fields = {"patch": patch, "leaf": part, "expected_revision": expected_revision, "command_id": command_id}
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
