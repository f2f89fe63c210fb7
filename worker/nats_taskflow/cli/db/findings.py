"""Print what `taskflow db check` found.

A few lines for a person, a JSON object for a program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nats_taskflow.cli.layout import wrap
from nats_taskflow.cli.output import format_time, paint, printable, terminal_width
from nats_taskflow.text import counted

if TYPE_CHECKING:
    from nats_taskflow.store.invariants.checking import Progress
    from nats_taskflow.store.invariants.findings import Findings, Violated

_SHOWN = 20
"""How many violations of an invariant a person is shown."""
_PROGRESS_STEP = 500


@contextmanager
def progress(*, shown: bool) -> Iterator[Progress]:
    """Give a function that reports how far the check is.

    If `shown`, a person at a terminal sees it on stderr.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda _name, _count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking …") as status:

        def tell(name: str, count: int) -> None:
            if count % _PROGRESS_STEP == 0:
                status.update(f"checking {name}{f': {count:,}' if count else ''} …")

        yield tell


def show(findings: Findings, output: str) -> None:
    """Print the findings on stdout."""
    if output == "json":
        import msgspec

        click.echo(msgspec.json.encode(findings))
        return
    if findings.worker is not None:
        _say(f"A worker (pid {findings.worker}) is running: this is a snapshot of {format_time(findings.at)}.")
    for violated in findings.violations:
        _show_violated(violated)
    kinds = {outlet.replace("_", " ").removesuffix("s"): number for outlet, number in findings.waiting.items() if number}
    waiting = ", ".join(counted(number, kind) for kind, number in kinds.items())
    if waiting:
        _say(f"On their way out, and no violation: {waiting}.")
    invariants = counted(len(findings.looked_at), "invariant")
    verdict = "Everything holds" if findings.ok else f"{len(findings.violations)} of {invariants} violated"
    # One line, however long the path is: pages and people search for it.
    click.echo(printable(f"{verdict}: {counted(findings.flows, 'flow')} in {findings.path}, {invariants}, {findings.seconds:.1f} s."))


def _show_violated(violated: Violated) -> None:
    """Print an invariant that does not hold, what violates it and what to do."""
    click.echo(f"{paint(violated.number, fg='red', bold=True)} {paint(f'{violated.name} does not hold', bold=True)}")
    for sentence in violated.sentences[:_SHOWN]:
        _say(sentence, "  ")
    if violated.count > _SHOWN:
        _say(f"… and {violated.count - _SHOWN} more", "  ")
    _say(f"What to do: {violated.advice}.", "  ", dim=True)


def _say(text: str, indent: str = "", **style: bool) -> None:
    click.echo(indent + paint(wrap(printable(text), terminal_width(), indent), **style))
