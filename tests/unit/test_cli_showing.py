"""How the operators' commands say things: spans, waits, machine formats, exit codes, and that help needs nothing heavy."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from nats_taskflow.cli import _COMMANDS, exit_codes, taskflow
from nats_taskflow.cli.command import Group, SettingsCommand
from nats_taskflow.cli.flow.act import cancelled_children
from nats_taskflow.cli.help_examples import EXAMPLES
from nats_taskflow.cli.identity import operator_name
from nats_taskflow.cli.output import Printer, format_span, format_wait, mark_status, printable
from nats_taskflow.cli.selection import KINDS
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.conditions import WaitCondition
from nats_taskflow.observe.metrics import WAIT_KINDS
from nats_taskflow.wire.requests import WaitKind

HEAVY = {"nats", "structlog", "uvicorn", "aiosqlite", "prometheus_client", "msgspec", "rich.table", "sqlite3"}


@pytest.mark.parametrize("arguments", [["--help"], ["flow", "--help"], ["dlq", "--help"], ["held", "-h"], ["db", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['taskflow', *{arguments!r}]; from nats_taskflow.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    program += f"print('HEAVY', sorted({HEAVY - {'rich.table'}!r} & sys.modules.keys()), len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("HEAVY []"), last
    assert int(last.split()[-1]) < 500, last


def test_every_refusal_of_the_worker_has_an_exit_code_that_the_table_explains() -> None:
    codes = {kind.code: exit_codes.for_error(kind.code) for kind in FlowError.__subclasses__()}
    assert set(codes.values()) <= exit_codes.MEANINGS.keys()
    assert (codes["not_found"], codes["revision_mismatch"], codes["invalid_request"], codes["unavailable"]) == (3, 4, 64, 69)
    assert exit_codes.for_error("never heard of") == exit_codes.FAILED


def test_every_intervention_wants_a_reason() -> None:
    root = taskflow
    context = root.make_context("taskflow", [], resilient_parsing=True)
    wanting = {"flow": ("resume", "cancel", "fail", "release"), "held": ("match", "expire"), "dlq": ("replay", "purge"), "db": ("prune",)}
    for group, names in wanting.items():
        commands = root.get_command(context, group).commands  # type: ignore[union-attr]  # a group
        for name in names:
            assert isinstance(commands[name], SettingsCommand)
            assert any(option.name == "reason" for option in commands[name].params), f"{group} {name}"


@pytest.mark.parametrize(
    "command",
    [
        "flow resume 0000cafe",
        "flow cancel 0000cafe",
        "flow fail 0000cafe",
        "flow release 0000cafe",
        "held match 1 0000cafe",
        "held expire 1",
        "dlq replay 1",
        "dlq purge 1",
        "db prune --older-than 30d",
    ],
)
def test_a_reason_is_asked_for_before_anybody_is_asked_unless_it_is_only_tried(command: str) -> None:
    said = CliRunner().invoke(taskflow, [*command.split(), "--server", "nats://127.0.0.1:1"])
    assert (said.exit_code, "--reason" in said.stderr) == (exit_codes.USAGE, True)
    if "--dry-run" in CliRunner().invoke(taskflow, [*command.split()[:2], "--help"]).stdout:
        tried = CliRunner().invoke(taskflow, [*command.split(), "--dry-run", "--server", "nats://127.0.0.1:1"])
        assert tried.exit_code == exit_codes.UNAVAILABLE, "it went on, and found no server there"


def test_the_kinds_of_waits_are_the_same_at_the_shell_on_the_wire_and_in_the_metrics() -> None:
    kinds = {part.__struct_config__.tag for part in get_args(WaitCondition)}
    assert set(KINDS) == set(get_args(WaitKind)) == set(WAIT_KINDS) == kinds


def test_a_command_that_is_misspelt_is_answered_with_the_right_one() -> None:
    for typed, meant in ((["fow"], "flow"), (["flow", "lst"], "list"), (["doktor"], "doctor")):
        said = CliRunner().invoke(taskflow, typed)
        assert said.exit_code == exit_codes.USAGE
        assert f"Did you mean '{meant}'?" in said.stderr


def test_the_list_of_commands_says_of_each_what_its_own_help_says_and_loads_none() -> None:
    context = taskflow.make_context("taskflow", [], resilient_parsing=True)
    for name, said in _COMMANDS.items():
        command = taskflow.get_command(context, name)
        assert command is not None
        assert " ".join((command.help or "").partition("\n\n")[0].split()) == said, name
    program = "import sys; from nats_taskflow.cli import main; sys.argv = ['taskflow', '--help']\ntry: main()\nexcept SystemExit: pass\n"
    program += "print([name for name in sys.modules if name.startswith('nats_taskflow.cli.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("nats_taskflow.cli.") for name in ast.literal_eval(done.stdout.splitlines()[-1])}
    assert loaded == {"command", "options", "exit_codes", "help_examples", "streams"}


@pytest.mark.parametrize("command", [["waits"], ["flow", "cancel"], ["dlq", "purge"], ["reply"], ["check"], ["run"]])
def test_help_shows_what_is_the_command_s_own_before_the_settings(command: list[str]) -> None:
    said = CliRunner().invoke(taskflow, [*command, "--help"]).stdout
    own, _, connection = said.partition("\nConnection:\n")
    assert "--help" in own.partition("\nOptions:\n")[2]
    assert "Example" in own
    assert "--nats-" not in own
    assert "-s, --server, --nats-url" in connection
    assert not re.search(r"^\S", connection, re.MULTILINE), "nothing comes after it"


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, part in command.commands.items():
            yield from leaves(part, f"{path} {name}")
    else:
        yield path, command


def all_commands() -> dict[str, click.Command]:
    context = taskflow.make_context("taskflow", [], resilient_parsing=True)
    tops = {name: taskflow.get_command(context, name) for name in taskflow.list_commands(context)}
    return dict(leaf for name, command in tops.items() if command is not None for leaf in leaves(command, name))


@pytest.mark.parametrize("path", sorted(all_commands()))
def test_every_command_has_an_example_that_can_be_typed(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, root = all_commands()[path], taskflow.make_context("taskflow", [], resilient_parsing=True)
    for line in EXAMPLES[path]:
        typed = shlex.split(line.replace('eval "$(', "").replace(')"', ""))
        assert typed[: len(path.split()) + 1] == ["taskflow", *path.split()], line
        command.make_context(path, typed[len(path.split()) + 1 :], parent=root)  # a usage error where an option is misspelt
        assert line in CliRunner().invoke(taskflow, [*path.split(), "--help"], prog_name="taskflow").stdout


@pytest.mark.parametrize("path", ["", *sorted(all_commands())])
def test_no_help_names_a_page_that_its_readers_do_not_have(path: str) -> None:
    said = CliRunner().invoke(taskflow, [*path.split(), "--help"], prog_name="taskflow").stdout
    assert re.findall(r"\b(?:SEMANTICS|CONTRACT|RELIABILITY|ARCHITECTURE|R\d+)\b", said) == []


def test_every_command_is_listed_under_one_heading() -> None:
    assert {path.split()[0] for path in EXAMPLES} == set(_COMMANDS), "an example of no command is left over"
    assert sorted(name for names in taskflow.sections.values() for name in names) == sorted(_COMMANDS)
    flow = taskflow.get_command(taskflow.make_context("taskflow", [], resilient_parsing=True), "flow")
    assert isinstance(flow, Group)
    assert sorted(name for names in flow.sections.values() for name in names) == sorted(flow.commands)


@pytest.mark.parametrize(
    "options, why",
    [
        (["--timer", "2h", "--timeout", "1h"], "timer"),
        (["--manual", "?", "--correlation-id", "c-1"], "--topic"),
        (["--manual", "?", "--topic", "t"], "one of"),
        ([], "one of"),
    ],
)
def test_a_wait_that_makes_no_sense_is_refused_and_nothing_left_out_in_silence(options: list[str], why: str) -> None:
    said = CliRunner().invoke(taskflow, ["flow", "wait", "0000cafe", *options])
    assert said.exit_code == exit_codes.USAGE
    assert why in " ".join(said.stderr.replace("│", "").split())


def test_a_reply_that_looks_like_json_and_is_none_is_refused() -> None:
    for payload in ('{"answer":', "[1,", '"half'):
        said = CliRunner().invoke(taskflow, ["reply", "t", "c", payload])
        assert said.exit_code == exit_codes.USAGE
        assert "JSON" in said.stderr


@pytest.mark.parametrize(
    "seconds, text", [(0, "0s"), (59.9, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (8040, "2h 14m"), (200_000, "2d 7h"), (-5, "5s")]
)
def test_spans_are_said_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert format_span(seconds) == text


def test_waits_are_said_in_few_words_whatever_they_are() -> None:
    event = {"kind": "external_event", "topic": "t", "correlation_id": "c"}
    assert format_wait(event) == "✉ t ⟨c⟩"
    assert format_wait({"kind": "manual", "prompt": "approve?"}) == '✋ manual "approve?"'
    assert format_wait({"kind": "at_least", "count": 2, "conditions": [event, {"kind": "manual"}]}) == "2 of [✉ t ⟨c⟩, ✋ manual]"
    assert format_wait({"kind": "flow", "flow_id": "f"}) == "⛓ flow f"
    assert format_wait(None) == format_wait({"kind": "of another version"}) == "—"


def test_a_status_is_never_said_by_colour_alone() -> None:
    assert mark_status("failed") == "✗ failed"
    assert mark_status("of another version").endswith("of another version")


def test_what_could_steer_a_terminal_is_taken_out() -> None:
    assert printable("a\x1b[2Jb\u202ec\nd") == "a [2Jb c\nd"


def test_machines_get_items_and_cursor_as_json_or_an_item_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"id": "a"}, {"id": "b"}]
    Printer("json").items(items, {}, cursor="x", empty="none")
    assert json.loads(capsys.readouterr().out) == {"items": items, "next_cursor": "x"}
    Printer("jsonl").items(items, {}, empty="none")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == items
    Printer("none").items(items, {}, empty="none")
    assert capsys.readouterr() == ("", "")


def test_people_get_a_table_without_escapes_where_no_terminal_is_and_a_hint_where_there_is_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Printer("table").items([{"id": "a\x1b[31m"}], {"ID": lambda item: item["id"]}, cursor="x", empty="none")
    said = capsys.readouterr()
    assert (said.out.split(), "\x1b" in said.out, "more: --cursor x" in said.err) == (["ID", "a", "[31m"], False, True)
    Printer("table").items([], {}, empty="start one")
    assert capsys.readouterr() == ("", "start one\n")


@pytest.mark.parametrize("given, name", [("ann", "ann"), ("ann lee/x", "ann_lee_x"), ("x" * 100, "x" * 63)])
def test_an_operators_name_is_made_of_what_a_name_may_have(given: str, name: str) -> None:
    assert operator_name(given) == name
    assert "@" in operator_name(None)


@pytest.mark.parametrize("done, pending, shown", [(1, 0, "1 child"), (3, 0, "3 children"), (200, 1, "201 or more children")])
def test_children_that_are_still_to_be_cancelled_are_counted_as_at_least_so_many(done: int, pending: int, shown: str) -> None:
    assert cancelled_children({"cancelled_children": {"done": done, "pending": pending, "ids": []}}) == shown
