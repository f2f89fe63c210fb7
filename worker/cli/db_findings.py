"""Show what `taskflow db check` found: to a person in a few lines, to a program as one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from worker.invariants.checking import Progress
    from worker.invariants.findings import Findings, Violated

_SHOWN = 20
_EVERY = 500


@contextmanager
def progress(*, shown: bool) -> Iterator[Progress]:
    """Give what hears how far the check is; a person at a terminal sees it on stderr while it lasts."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _name, _count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking …") as status:

        def tell(name: str, count: int) -> None:
            """Say what is looked at."""
            if count % _EVERY == 0:
                status.update(f"checking {name}{f': {count:,}' if count else ''} …")

        yield tell


def show(findings: Findings, output: str) -> None:
    """Print the findings on stdout."""
    if output == "json":
        import msgspec

        click.echo(msgspec.json.encode(findings))
        return
    console = _console()
    if findings.worker is not None:
        console.print(f"A worker (pid {findings.worker}) is running: this is a snapshot of {findings.at}.", markup=False)
    for violated in findings.violations:
        _show_one(console, violated)
    waiting = ", ".join(f"{number} {outlet.replace('_', ' ')}" for outlet, number in findings.waiting.items() if number)
    if waiting:
        console.print(f"On their way out, and no violation: {waiting}.", markup=False)
    said = "Everything holds" if findings.ok else f"{len(findings.violations)} of {len(findings.looked_at)} invariants do not hold"
    console.print(
        f"{said}: {findings.flows} flows in {findings.path}, {len(findings.looked_at)} invariants, {findings.seconds:.1f} s.", markup=False
    )


def _show_one(console: Console, violated: Violated) -> None:
    """Print one invariant that does not hold, what was found and what to do."""
    from rich.text import Text

    console.print(Text.assemble((violated.number, "bold red"), " ", (f"{violated.name} does not hold", "bold")))
    for sentence in violated.sentences[:_SHOWN]:
        console.print(f"  {sentence}", markup=False)
    if violated.count > _SHOWN:
        console.print(f"  … and {violated.count - _SHOWN} more", markup=False)
    console.print(Text(f"  What to do: {violated.advice}.", style="dim"))


def _console() -> Console:
    """Make the console: colours on a terminal, unless NO_COLOR is set; plain lines, never folded, otherwise."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)
