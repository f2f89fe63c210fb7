"""`taskflow flow resume|cancel|fail|release`: steer flows as an operator; the journal keeps who and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rich_click as click

from worker.cli import exits
from worker.cli.asking import AskCommand, Line, Refused, operator_name, reason_option, run, whole_ids
from worker.cli.flow_acting import json_value
from worker.cli.showing import Printer, mark, progress, short

Json = dict[str, Any]
_REVISION = click.option("--expected-revision", type=int, metavar="N", help="Refuse if the flow is not at this revision.")
_COMMAND = click.option("--command-id", metavar="ID", help="Repeat with the same id: the same outcome, done once. For one flow only.")
_FLOWS = click.argument("flows", nargs=-1, required=True, metavar="FLOW…")


def _steer(verb: str, flows: Sequence[str], fields: Json, arguments: Mapping[str, Any]) -> None:
    """Do it to each flow; one that is refused does not keep the others from it."""

    async def main(line: Line, printer: Printer) -> int:
        """Do it, and say what became of each."""
        said = {**fields, "operator": operator_name(arguments["operator"]), "reason": arguments["reason"]}
        ids = await whole_ids(line, flows)
        if len(ids) > 1 and (fields.get("command_id") or fields.get("expected_revision") is not None):
            raise click.UsageError("--command-id and --expected-revision are about one flow")
        if len(ids) == 1:
            answers = [await line.ask(verb, flow_id=ids[0], **said)]
            refused: list[Refused] = []
        else:
            answers, refused = await _each(line, verb, ids, said, printer)
        columns = {
            "FLOW": lambda a: short(a["flow"]["id"]),
            "STATUS": lambda a: mark(a["flow"]["status"]) + (" (cancel requested)" if a["flow"]["cancel_requested"] else ""),
            "REV": lambda a: str(a["flow"]["revision"]),
            "ALSO": lambda a: f"{len(a['cancelled_children'])} children" if a.get("cancelled_children") else "",
        }
        printer.items(answers, columns, empty="None was done.")
        if not refused:
            return exits.DONE
        return exits.PARTIAL if answers else exits.of_error(refused[0].error["code"])

    run(arguments, main)


async def _each(line: Line, verb: str, ids: Sequence[str], said: Json, printer: Printer) -> tuple[list[Json], list[Refused]]:
    """Do it to many flows; each refusal is said at once."""
    answers: list[Json] = []
    refused: list[Refused] = []
    with progress(verb, len(ids), shown=printer.for_people) as tell:
        for flow_id in ids:
            try:
                answers.append(await line.ask(verb, flow_id=flow_id, **said))
            except Refused as no:
                refused.append(no)
                click.echo(f"taskflow: {no}", err=True)
            tell(1)
    return answers, refused


@click.command(cls=AskCommand)
@_FLOWS
@click.option("--patch", metavar="JSON", callback=json_value, help="Merge this object into the state.")
@click.option("--leaf", metavar="NAME", help="Answer only this part of a combined wait.")
@_REVISION
@_COMMAND
@reason_option
def resume(
    *, flows: tuple[str, ...], patch: Any, leaf: str | None, expected_revision: int | None, command_id: str | None, **arguments: Any
) -> None:
    """Resume waiting flows, whatever they wait for. `-` reads ids from stdin."""
    part = int(leaf) if leaf is not None and leaf.isdigit() else leaf
    fields = {"patch": patch, "leaf": part, "expected_revision": expected_revision, "command_id": command_id}
    _steer("resume", flows, fields, arguments)


@click.command(cls=AskCommand)
@_FLOWS
@click.option("--request", is_flag=True, help="Only ask for it: a running flow winds down by itself.")
@click.option("--no-cascade", is_flag=True, help="Leave the children alone.")
@_REVISION
@_COMMAND
@reason_option
def cancel(
    *, flows: tuple[str, ...], request: bool, no_cascade: bool, expected_revision: int | None, command_id: str | None, **arguments: Any
) -> None:
    """Cancel flows, and their children with them. `-` reads ids from stdin."""
    how = {"mode": "request" if request else "now", "cascade": not no_cascade}
    _steer("cancel", flows, {**how, "expected_revision": expected_revision, "command_id": command_id}, arguments)


@click.command(cls=AskCommand)
@_FLOWS
@_REVISION
@_COMMAND
@reason_option
def fail(*, flows: tuple[str, ...], expected_revision: int | None, command_id: str | None, **arguments: Any) -> None:
    """End flows badly; the reason is the failure's. `-` reads ids from stdin."""
    _steer("fail", flows, {"expected_revision": expected_revision, "command_id": command_id}, arguments)


@click.command(cls=AskCommand)
@_FLOWS
@reason_option
def release(*, flows: tuple[str, ...], **arguments: Any) -> None:
    """Set flows free again that were set aside, once their rows can be read."""
    _steer("release", flows, {}, arguments)


COMMANDS = (resume, cancel, fail, release)
