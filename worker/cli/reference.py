"""Write docs/cli.md from the commands themselves: `python -m worker.cli.reference [--check] docs/cli.md`. Drift fails a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from worker.cli import exits, taskflow
from worker.cli.options import SettingsCommand

_HEAD = """# The command line

Written by `make cli-docs` from the commands themselves: do not edit.

Data goes to stdout, everything else to stderr. `-o json` prints lists as `{"items": […], "next_cursor": …}`, `-o jsonl` an item a line.
A FLOW is an id, or at least 6 characters of its beginning or end; `-` reads ids from stdin where several may be given. Tables on a
terminal end ids to their last 8 digits; elsewhere they are whole. `NO_COLOR` is obeyed. Commands that ask a worker do so over NATS, with
the settings of `taskflow run` (file, environment, flags, contexts); the reading ones take `--db FILE` where no worker runs.
Every intervention needs `--reason`; it is journaled with `operator:<--as>`.
"""


def reference() -> str:
    """Return the page."""
    lines = [_HEAD, "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in sorted(exits.MEANINGS.items())]
    lines += ["", "`taskflow check` exits as Nagios has it: 0 ok, 1 warning, 2 critical, 3 unknown.", ""]
    context = click.Context(taskflow, info_name="taskflow")
    for name in taskflow.list_commands(context):
        command = taskflow.get_command(context, name)
        assert command is not None, "what is listed is there"
        lines += _described(command, f"taskflow {name}")
    return "\n".join(lines).rstrip() + "\n"


def _described(command: click.Command, path: str) -> Iterator[str]:
    """Describe a command, or those of a group."""
    if isinstance(command, click.Group):
        yield from (f"## {path}", "", _plain(command.help), "")
        for name, part in command.commands.items():
            yield from _described(part, f"{path} {name}")
        return
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=path)))
    yield from (f"### {path}", "", f"`{path} {usage}`", "", _plain(command.help), "")
    own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for option in own:
        yield f"- `{_spelled(option)}`: {_plain(option.help)}" + (" *(required)*" if option.required else "")
    if isinstance(command, SettingsCommand):
        sections = "all settings" if command.sections is None else "the settings " + ", ".join(f"`{one}.*`" for one in command.sections)
        yield f"- and {sections}, `--config FILE`{_also(command)}"
    yield ""


def _also(command: SettingsCommand) -> str:
    """Name the options that a kind of command has."""
    from worker.cli.asking import AskCommand, ReadCommand

    also = ", `-o table|json|jsonl|none`" if isinstance(command, AskCommand) else ""
    return also + (", `--db FILE`" if isinstance(command, ReadCommand) else "")


def _spelled(option: click.Option) -> str:
    """Spell an option as it is typed."""
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    kinds = option.type.choices if isinstance(option.type, click.Choice) else None
    value = "|".join(map(str, kinds)) if kinds else option.metavar or option.type.name.upper().removesuffix(" RANGE")
    return f"{names} {value}" + (" " + value if option.nargs > 1 else "")


def _plain(text: str | None) -> str:
    """Return help as one paragraph a blank line."""
    paragraphs = (text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is up to date."""
    check, place = "--check" in arguments, Path(arguments[-1])
    if check:
        return 0 if place.is_file() and place.read_text(encoding="utf-8") == reference() else 1
    place.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
