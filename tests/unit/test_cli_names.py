"""One name for one thing: an option has the name of the field that it becomes, and what it was called before still works."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator
from typing import Any

import click
import msgspec
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from nats_taskflow.cli import taskflow
from nats_taskflow.cli.flow import flow
from nats_taskflow.wire import admin_requests, requests

ID = "01990000-0000-7000-8000-00000000cafe"
ALIASES = [
    ("flow start", "--agent kate --goal g {} kate/x", "--controller-id", "--controller"),
    ("flow start", "--agent kate --goal g --controller-id k {} collect", "--current-step", "--step"),
    ("flow start", f"--agent kate --goal g --controller-id k {{}} {ID}", "--flow-id", "--id"),
    ("flow advance", f"{ID} --agent kate {{}} collect", "--current-step", "--step"),
    ("flow wait", f"{ID} --agent kate --topic t {{}} c", "--correlation-id", "--corr"),
    ("flow wait", f"{ID} --agent kate {{}} '[]'", "--wait-condition", "--condition"),
    ("flow finish", f"{ID} --agent kate {{}} '[]'", "--final-state", "--state"),
    ("flow cancel", f"{ID} --reason r {{}} ann", "--operator", "--as"),
    ("flow list", "{} c", "--correlation-id", "--corr"),
    ("flow list", "{} 'kate/*'", "--controller", "--controller-id"),
    ("waits", "{} collect", "--step", "--current-step"),
    ("held list", "{} c", "--correlation-id", "--corr"),
]
"""A command, its arguments, an option among them, and what does the same."""
WHO_ASKS = {"agent", "as_agent", "session_id"}
OF_THE_SHELL = {"request", "no_cascade", "dry_run", "yes", "rate", "help"}
"""Options that turn a field the other way round, or are no field."""
OF_CONDITIONS = {"timer", "topic", "correlation_id", "manual", "timeout", "on_timeout"}
"""Options of which `flow wait` makes its `wait_condition`."""


class Recorder:
    """A worker that takes down what it is asked, and refuses everything."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        self.requests.append((verb, fields))
        raise click.UsageError("enough is known")

    async def ask_as_agent(self, agent: str, verb: str, **fields: Any) -> dict[str, Any]:
        return await self.ask(f"{agent} {verb}", **fields)


def requested(command: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Return what a command asks the worker."""
    recorder = Recorder()

    @contextlib.asynccontextmanager
    async def recording(*_: Any) -> AsyncIterator[Recorder]:
        yield recorder

    monkeypatch.setattr("nats_taskflow.cli.session.open_session", recording)
    ended = CliRunner().invoke(taskflow, shlex.split(command), prog_name="taskflow")
    assert "enough is known" in ended.stderr, ended.output
    return recorder.requests


@pytest.mark.parametrize("command, arguments, name, alias", ALIASES)
def test_an_option_does_the_same_by_its_alias(command: str, arguments: str, name: str, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requested(f"{command} {arguments.format(name)}", monkeypatch)
    assert len(asked) == 1
    assert asked == requested(f"{command} {arguments.format(alias)}", monkeypatch)


@pytest.mark.parametrize("command, name, alias", [(command, name, alias) for command, _, name, alias in ALIASES])
def test_an_alias_is_in_no_help_and_in_no_completion(command: str, name: str, alias: str) -> None:
    shown = CliRunner().invoke(taskflow, [*command.split(), "--help"], prog_name="taskflow").stdout
    completion = ShellComplete(taskflow, {}, "taskflow", "_TASKFLOW_COMPLETE")
    offered = [item.value for item in completion.get_completions(command.split(), "--")]
    assert name in offered
    assert f"{name} " in shown
    assert alias not in offered
    assert f"{alias} " not in shown


@pytest.mark.parametrize("name", ["start", "advance", "wait", "finish", "delegate", "resume", "cancel", "fail"])
def test_an_option_that_becomes_a_field_has_its_name(name: str) -> None:
    of_operators = admin_requests.OPERATIONS.get(name, {}).values()  # and then flows can be named by a filter, too
    shapes: list[type[msgspec.Struct]] = [requests.COMMANDS[name], *of_operators, *([admin_requests.List] if of_operators else [])]
    fields = {field.name for shape in shapes for field in msgspec.structs.fields(shape)} | OF_THE_SHELL
    for option in flow.commands[name].params:
        if isinstance(option, click.Option) and option.name not in WHO_ASKS:
            assert option.name in fields | (OF_CONDITIONS if name == "wait" else set())
            assert f"--{(option.name or '').replace('_', '-')}" in option.opts
