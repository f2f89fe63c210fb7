"""What a command advises can be typed: each option that its message names is one that it has, or that the command it names has."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
from nats_taskflow.cli import session, taskflow
from nats_taskflow.cli.command import AskCommand
from nats_taskflow.cli.help_examples import EXAMPLES
from nats_taskflow.errors import BusLost, NotAllowed
from tests.unit.test_cli_showing import all_commands

COMMANDS = all_commands()
ASKING = sorted(path for path, command in COMMANDS.items() if isinstance(command, AskCommand))
ROOT = Path(session.__file__).parents[1]
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def options_of(path: str) -> set[str]:
    """Every option of a command, as it is typed."""
    command = COMMANDS[path]
    parameters = command.get_params(click.Context(command))
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}


def named(text: str) -> Iterator[tuple[str, str]]:
    """Give the commands that a text names, each with an option that the text names of it."""
    for typed in re.findall(r"taskflow ((?:[a-z]+ ?)+[^`;,()\n]*)", text):
        path = next((path for path in COMMANDS if f"{typed} ".startswith(f"{path} ")), None)
        if path is not None:
            yield from ((path, option) for option in OPTION.findall(typed))


def test_every_option_that_a_text_of_the_program_names_is_one_that_the_command_has() -> None:
    found = [
        (path.name, *one)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for one in named(spelled(node))
    ]
    assert len(found) > 20, "there are such texts"
    assert [one for one in found if one[2] not in options_of(one[1])] == []


def spelled(node: ast.AST) -> str:
    """Return the text that a node is, with an X for what is known later; none for a node that is no text."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in parts)  # type: ignore[misc]
        case _:
            return ""


class NobodyThere:
    """A connection on which every question ends the same way."""

    address, max_payload = "nats://127.0.0.1:4222", 1 << 20

    def __init__(self, ending: Callable[[str], Exception]) -> None:
        self.ending = ending

    async def ask(self, subject: str, body: bytes, **_: Any) -> bytes:
        raise self.ending(subject)

    async def publish(self, subject: str, body: bytes, headers: Any) -> Any:
        raise self.ending(subject)

    async def last(self, stream: str, *_: Any, **__: Any) -> Any:
        raise self.ending(f"$JS.API.STREAM.INFO.{stream}")

    def listen(self, pattern: str, *_: Any) -> AsyncIterator[Any]:
        raise self.ending(pattern)


ENDINGS: dict[str, Callable[[str], Exception]] = {
    "answers": lambda subject: NoWorkerAnswer(f"no worker answers on {subject}"),
    "within": lambda subject: NoWorkerAnswer(f"no answer on {subject} within 5 s", late=True),
    "may not use": NotAllowed,
    "_INBOX": lambda _subject: NotAllowed("_INBOX.x"),
    "reached": lambda _subject: BusLost("NATS cannot be reached"),
}
"""How a question can end, by what is said of it."""


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("path", ASKING)
def test_a_command_that_nobody_answers_says_why_and_advises_only_options_that_it_has(
    path: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def connected(_config: Any) -> AsyncIterator[NobodyThere]:
        yield NobodyThere(ENDINGS[ending])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "connect", connected)
    for line in EXAMPLES[path]:
        ended = CliRunner().invoke(taskflow, [*shlex.split(line)[1:], *(("--yes",) if "--yes" in options_of(path) else ())])
        assert isinstance(ended.exception, SystemExit), "a refusal, and no defect"
        assert ending in ended.output
        assert set(OPTION.findall(ended.output)) <= options_of(path), ended.output
