"""`taskflow top`: the figures and the longest waits, every few seconds."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import click

from nats_taskflow.cli.command import ReadCommand
from nats_taskflow.cli.output import Printer, field_lines, format_time, mark_status, table_lines
from nats_taskflow.cli.protocol import OperatorSession
from nats_taskflow.cli.session import run
from nats_taskflow.cli.stats import figure_lines
from nats_taskflow.cli.waits import COLUMNS

_ENDLESS = 2**62


@click.command(cls=ReadCommand)
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(1), help="End after this many looks.")
def top(*, interval: float, count: int | None, **arguments: Any) -> None:
    """Watch the worker: figures and the longest waits. Ctrl-C ends."""

    async def main(session: OperatorSession, _printer: Printer) -> None:
        """Print the figures again and again."""
        import asyncio

        looks = count if count is not None else (_ENDLESS if sys.stdout.isatty() else 1)
        with _alternate_screen(on=sys.stdout.isatty() and count is None) as clear:
            for look in range(looks):
                lines = await _look(session)
                click.echo(clear + "\n".join(lines[: shutil.get_terminal_size().lines - 1] if clear else lines))
                if look + 1 < looks:
                    await asyncio.sleep(interval)

    run(arguments, main)


@contextlib.contextmanager
def _alternate_screen(*, on: bool) -> Iterator[str]:
    """Use the terminal's alternate screen meanwhile.

    Gives what clears the screen before each update.
    """
    if not on:
        yield ""
        return
    click.echo("\x1b[?1049h", nl=False)
    try:
        yield "\x1b[H\x1b[2J"
    finally:
        click.echo("\x1b[?1049l", nl=False)


async def _look(session: OperatorSession) -> list[str]:
    """Return the lines of one look."""
    stats = await session.ask("stats")
    page = await session.ask("waits", limit=20)
    title = f"taskflow top · {format_time(stats['now'])} · {mark_status('waiting')} {stats['flows']['waiting']:,}"
    return [title, *field_lines(figure_lines(stats)), "", *table_lines(page["waits"], COLUMNS)]
