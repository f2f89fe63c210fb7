"""`taskflow top`: the figures and the longest waits, looked at again and again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import rich_click as click

from worker.cli.asking import Line, ReadCommand, run
from worker.cli.showing import Printer, mark, printable, short, since, until, waits_on
from worker.cli.stats import lines_of

if TYPE_CHECKING:
    from rich.console import Group


@click.command(cls=ReadCommand)
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(1), help="End after this many looks.")
def top(*, interval: float, count: int | None, **arguments: Any) -> None:
    """Watch the worker: figures and the longest waits. Ctrl-C ends."""

    async def main(line: Line, printer: Printer) -> None:
        """Look again and again."""
        import asyncio

        from rich.live import Live

        looks = count if count is not None else (2**62 if sys.stdout.isatty() else 1)
        with Live(console=printer.console(), screen=sys.stdout.isatty() and count is None, auto_refresh=False) as live:
            for look in range(looks):
                live.update(await _seen(line), refresh=True)
                if look + 1 < looks:
                    await asyncio.sleep(interval)

    run(arguments, main)


async def _seen(line: Line) -> Group:
    """Return what there is to see now."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    stats = await line.ask("stats")
    page = await line.ask("waits", limit=20)
    figures = Table(box=None, show_header=False, pad_edge=False)
    for name, value in lines_of(stats):
        figures.add_row(Text(name, style="bold"), Text(printable(value)))
    waits = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("FLOW", "CONTROLLER", "STEP", "SINCE", "DUE", "WAITS ON"):
        waits.add_column(name, no_wrap=True)
    for wait in page["waits"]:
        cells = (short(wait["flow_id"]), wait["controller_id"], wait["current_step"], since(wait["since"], page["now"]))
        waits.add_row(*(Text(printable(cell)) for cell in (*cells, until(wait["until"], page["now"]), waits_on(wait["wait"]))))
    return Group(Text(f"taskflow top · {stats['now']} · {mark('waiting')} {stats['flows']['waiting']:,}"), figures, Text(""), waits)
