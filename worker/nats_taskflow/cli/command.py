"""The kinds of commands, by the options that they share, and their help.

Help is read at night: what a command does and an example come first, then its own options, and the connection last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import click

from nats_taskflow.cli.options import CLIENT, CONNECTION, OWN, Option, setting_options

_CLICKS_NUMBER = re.compile(r"(?:INTEGER|FLOAT)(?: RANGE)?\b")
"""What click calls a number in help."""
_NEAR = 0.75
_FOREIGN_NAMES = {
    "--json": ("--output", "-o json"),
    "--jsonl": ("--output", "-o jsonl"),
    "--format": ("--output", "-o"),
    "--after": ("--timer", "--timer"),
    "--if-revision": ("--expected-revision", "--expected-revision"),
    "--revision": ("--expected-revision", "--expected-revision"),
}
"""What other command lines call an option: its name here, and how it is typed."""


def suggest_options(written: str, known: Sequence[str]) -> list[str]:
    """Return the options that were probably meant.

    None is better than a far-fetched one: `--session` for `--json` leads astray.
    """
    from difflib import get_close_matches

    name, instead = _FOREIGN_NAMES.get(written, ("", ""))
    if name in known:
        return [instead]
    prefixed = [option for option in known if option.startswith(written) or written.startswith(option)]
    return prefixed or get_close_matches(written, known, cutoff=_NEAR)


def write_examples(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the examples as they are typed: whole lines to copy, whatever the width."""
    from nats_taskflow.cli.help_examples import EXAMPLES

    lines = EXAMPLES.get(ctx.command_path.partition(" ")[2], ())
    if lines:
        with formatter.section("Example" if len(lines) == 1 else "Examples"):
            formatter.write("".join(f"{' ' * formatter.current_indent}{line}\n" for line in lines))


_LEADING = "nats_taskflow.cli: options before the command"
"""Where a group leaves them for its command."""


class TaskflowCommand(click.Command):
    """A command whose help has examples, and its options by heading."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command and behind it: the last one counts."""
        try:
            return super().parse_args(ctx, [*ctx.meta.get(_LEADING, ()), *args])
        except click.NoSuchOption as unknown:
            known = [name for parameter in self.get_params(ctx) for name in parameter.opts if name.startswith("--")]
            raise click.NoSuchOption(unknown.option_name, possibilities=suggest_options(unknown.option_name, known), ctx=ctx) from None

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, and examples."""
        super().format_help_text(ctx, formatter)
        write_examples(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, the connection last."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and record[1]:  # arguments have none: the usage line names them, and the text says what they are
                names = _CLICKS_NUMBER.sub("N", record[0])
                panels.setdefault(getattr(parameter, "panel", OWN), []).append((names, record[1]))
        for title in sorted(panels, key=lambda title: title == CONNECTION):
            with formatter.section(title):
                formatter.write_dl(panels[title])


class SettingsCommand(TaskflowCommand):
    """A command that takes `--config` and a flag for every setting.

    Its callback gets them as keyword arguments. `sections`: only the settings of these sections; None: all.
    """

    sections: tuple[str, ...] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own options, then the settings.

        They are made when parsing or helping, so that importing stays cheap.
        """
        *own, help_option = super().get_params(ctx)
        return [*own, *self.shared_options(), help_option, *setting_options(self.sections)]

    def shared_options(self) -> list[click.Parameter]:
        """Return the options that all commands of the kind have."""
        return []


class ConnectionCommand(SettingsCommand):
    """A command that takes the settings of a client: those of the connection."""

    sections = CLIENT


class AskCommand(ConnectionCommand):
    """A command that asks for something, in a form for people or for programs."""

    def shared_options(self) -> list[click.Parameter]:
        """Return the choice of a form."""
        form = Option(
            ["output", "-o", "--output"],
            type=click.Choice(["table", "json", "jsonl", "none"]),
            default="table",
            help="How to say it: for people, or for programs.",
        )
        return [form]


class ReadCommand(AskCommand):
    """A command that changes nothing.

    So a database can answer it while no worker runs.
    """

    def shared_options(self) -> list[click.Parameter]:
        """Add the choice of a database."""
        database = Option(["database", "--db"], metavar="FILE", help="Read this database instead of asking a worker (read-only).")
        return [*super().shared_options(), database]


class Group(click.Group):
    """Commands under one name, listed by `sections`: heading → names.

    All stand under one heading where there are no sections.
    """

    command_class = TaskflowCommand
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Pass on connection options before the command: `taskflow -s URL waits`."""
        if args and args[0].startswith("-") and not any(args[0] in option.opts for option in self.get_params(ctx)):
            known = click.Command(self.name, params=[*self.get_params(ctx), *setting_options(CLIENT)])
            _, rest, _ = known.make_parser(ctx).parse_args(list(args))
            ctx.meta[_LEADING] = (*ctx.meta.get(_LEADING, ()), *args[: len(args) - len(rest)])
            args = rest
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the commands are for, and examples."""
        super().format_help_text(ctx, formatter)
        write_examples(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the few options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, under its heading."""
        width = max((len(name) for name in self.list_commands(ctx)), default=0)
        for title, names in (self.sections or {"Commands": tuple(self.list_commands(ctx))}).items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", self.describe(ctx, name)) for name in names])

    def describe(self, ctx: click.Context, name: str) -> str:
        """Return what a command does, in a sentence."""
        command = self.get_command(ctx, name)
        return first_sentence((command.help if command is not None else None) or "")


def first_sentence(text: str) -> str:
    """Return the first sentence of a command's help."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")
