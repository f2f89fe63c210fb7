"""Describe the command line, from the commands themselves: docs/cli.md."""

from __future__ import annotations

from collections.abc import Iterator

import click

from docs.generate.markdown import BY_HAND, page_of
from nats_taskflow.cli import exit_codes, taskflow
from nats_taskflow.cli.command import AskCommand, ReadCommand, SettingsCommand
from nats_taskflow.cli.help_examples import EXAMPLES

_HEAD = f"""# The command line

{BY_HAND}

Data goes to stdout, everything else to stderr. `-o json` prints lists as `{{"items": […], "next_cursor": …}}`, and `-o jsonl` one item a line.
A FLOW is an id, or at least 6 characters of its beginning or end. `-` reads from stdin: ids where several may be given, JSON where the
help says `JSON|-`. On a terminal, tables shorten ids to their last 8 digits; elsewhere ids are whole. `NO_COLOR` is obeyed.

Commands that ask a worker do so over NATS, with the settings of `taskflow run` ([file, environment, flags, contexts](configuration.md)).
These options may also come before the command (`taskflow -s URL waits`). Commands that only read take `--db FILE` where no worker runs.
Every intervention needs `--reason`; the journal keeps it, with `operator:<--operator>`.
"""


def page() -> str:
    """Return the page."""
    lines = [_HEAD, "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in sorted(exit_codes.MEANINGS.items())]
    lines += ["", "`taskflow check` exits as Nagios has it: 0 ok, 1 warning, 2 critical, 3 unknown.", ""]
    # With the settings, and as a parent below: click keeps the help option that it finds first, for the rest of the process.
    context = click.Context(taskflow, info_name="taskflow", **taskflow.context_settings)
    for name in taskflow.list_commands(context):
        command = taskflow.get_command(context, name)
        assert command is not None, "what is listed is there"
        lines += _describe(command, f"taskflow {name}", context)
    return page_of(lines)


def _describe(command: click.Command, path: str, parent: click.Context) -> Iterator[str]:
    """Describe a command, or those of a group."""
    if isinstance(command, click.Group):
        yield from (f"## {path}", "", _paragraphs(command.help), "")
        for name, part in command.commands.items():
            yield from _describe(part, f"{path} {name}", parent)
        return
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=path, parent=parent)))
    yield from (f"### {path}", "", f"`{path} {usage}`", "", _paragraphs(command.help), "")
    yield from ("```sh", *EXAMPLES[path.partition(" ")[2]], "```", "")
    own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for option in own:
        yield f"- `{_spell_option(option)}`: {_paragraphs(option.help)}" + (" *(required)*" if option.required else "")
    if isinstance(command, SettingsCommand):
        sections = (
            "all [settings](configuration.md)"
            if command.sections is None
            else "the [settings](configuration.md) " + ", ".join(f"`{section}.*`" for section in command.sections)
        )
        yield f"- and {sections}, `--config FILE`{_options_of_kind(command)}"
    yield ""


def _options_of_kind(command: SettingsCommand) -> str:
    """Name the options that a kind of command has."""
    output = ", `-o table|json|jsonl|none`" if isinstance(command, AskCommand) else ""
    return output + (", `--db FILE`" if isinstance(command, ReadCommand) else "")


def _spell_option(option: click.Option) -> str:
    """Spell an option as it is typed."""
    names = ", ".join(option.opts)
    if option.is_flag:
        return names
    kinds = option.type.choices if isinstance(option.type, click.Choice) else None
    value = "|".join(map(str, kinds)) if kinds else option.metavar or option.type.name.upper().removesuffix(" RANGE")
    return f"{names} {value}" + (" " + value if option.nargs > 1 else "")


def _paragraphs(text: str | None) -> str:
    """Return help as one paragraph a blank line."""
    paragraphs = (text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).replace("|", "\\|")
