"""Commands whose help is read at night: what it does and an example first, its own options next, settings and connection last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import click

from nats_taskflow.cli.options import CLIENT, CONNECTION, OWN, Option, setting_options

_RANGE = re.compile(r"(?:INTEGER|FLOAT)(?: RANGE)?\b")
"""What click calls a number."""


_NEAR = 0.75
_ELSEWHERE = {
    "--json": ("--output", "-o json"),
    "--jsonl": ("--output", "-o jsonl"),
    "--format": ("--output", "-o"),
    "--after": ("--timer", "--timer"),
    "--if-revision": ("--expected-revision", "--expected-revision"),
    "--revision": ("--expected-revision", "--expected-revision"),
}
"""What other command lines call an option: what it is here, and how that is typed."""


def suggest_options(written: str, known: Sequence[str]) -> list[str]:
    """Name the options that were probably meant. Nothing is better than far-fetched: `--session` for `--json` leads astray."""
    from difflib import get_close_matches

    other, instead = _ELSEWHERE.get(written, ("", ""))
    if other in known:
        return [instead]
    longer = [name for name in known if name.startswith(written) or written.startswith(name)]
    return longer or get_close_matches(written, known, cutoff=_NEAR)


def write_example(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write what to type, to be copied: not folded, whatever the width."""
    from nats_taskflow.cli.help_examples import EXAMPLES

    lines = EXAMPLES.get(ctx.command_path.partition(" ")[2], ())
    if lines:
        with formatter.section("Example" if len(lines) == 1 else "Examples"):
            formatter.write("".join(f"{' ' * formatter.current_indent}{line}\n" for line in lines))


_LEADING = "nats_taskflow.cli: options that stand before the command"


class TaskflowCommand(click.Command):
    """A command with an example, and its options by heading."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands behind the command, and what stands before it: what is said last counts."""
        try:
            return super().parse_args(ctx, [*ctx.meta.get(_LEADING, ()), *args])
        except click.NoSuchOption as unknown:
            known = [name for parameter in self.get_params(ctx) for name in parameter.opts if name.startswith("--")]
            raise click.NoSuchOption(unknown.option_name, possibilities=suggest_options(unknown.option_name, known), ctx=ctx) from None

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what it does, and the example."""
        super().format_help_text(ctx, formatter)
        write_example(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, those of the connection at the end."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and record[1]:  # arguments have none: the usage line names them, and the text says what they are
                names = _RANGE.sub("N", record[0])
                panels.setdefault(getattr(parameter, "panel", OWN), []).append((names, record[1]))
        for title in sorted(panels, key=lambda title: title == CONNECTION):
            with formatter.section(title):
                formatter.write_dl(panels[title])


class SettingsCommand(TaskflowCommand):
    """A command that takes `--config` and a flag for every setting; its callback gets them as keyword arguments.

    `sections`: only the settings of these sections; None: all.
    """

    sections: tuple[str, ...] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Give the command's own options, then the settings. Called when parsing or helping, so that importing stays cheap."""
        *own, help_option = super().get_params(ctx)
        return [*own, *self.shared_options(), help_option, *setting_options(self.sections)]

    def shared_options(self) -> list[click.Parameter]:
        """Give the options that all commands of the kind have."""
        return []


class ConnectionCommand(SettingsCommand):
    """A command that connects as a client does: it takes only the settings of the connection."""

    sections = CLIENT


class AskCommand(ConnectionCommand):
    """A command that asks, and takes how to say the answer."""

    def shared_options(self) -> list[click.Parameter]:
        """Give how to say it."""
        how = Option(
            ["output", "-o", "--output"],
            type=click.Choice(["table", "json", "jsonl", "none"]),
            default="table",
            help="How to say it: for people, or for programs.",
        )
        return [how]


class ReadCommand(AskCommand):
    """A command that only asks questions, so that a database can answer them while no worker runs."""

    def shared_options(self) -> list[click.Parameter]:
        """Add the choice of a database."""
        place = Option(["database", "--db"], metavar="FILE", help="Read this database instead of asking a worker (read-only).")
        return [*super().shared_options(), place]


class Group(click.Group):
    """Commands under one name, listed by `sections`: heading → names; all under one heading where there are none."""

    command_class = TaskflowCommand
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave options of the connection that stand before the command to the command: `taskflow -s URL waits`."""
        if args and args[0].startswith("-") and not any(args[0] in option.opts for option in self.get_params(ctx)):
            known = click.Command(self.name, params=[*self.get_params(ctx), *setting_options(CLIENT)])
            _, rest, _ = known.make_parser(ctx).parse_args(list(args))
            ctx.meta[_LEADING] = (*ctx.meta.get(_LEADING, ()), *args[: len(args) - len(rest)])
            args = rest
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what it is about, and the example."""
        super().format_help_text(ctx, formatter)
        write_example(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the few options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line of each command, under its heading."""
        width = max((len(name) for name in self.list_commands(ctx)), default=0)
        for title, names in (self.sections or {"Commands": tuple(self.list_commands(ctx))}).items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", self.describe(ctx, name)) for name in names])

    def describe(self, ctx: click.Context, name: str) -> str:
        """Say in a sentence what a command does."""
        command = self.get_command(ctx, name)
        return first_sentence((command.help if command is not None else None) or "")


def first_sentence(text: str) -> str:
    """Return the first sentence of a command's help."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")
