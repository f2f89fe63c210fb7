"""`taskflow db check`: check all invariants of a database, live or a copy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.dev_folder import load_with_database
from nats_taskflow.cli.options import form_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats_taskflow.config import Config
    from nats_taskflow.store.invariants import Evidence, Ledger

_VIOLATED = 1
"""The exit code where something does not hold."""


@click.command(cls=SettingsCommand)
@click.option("--db", "place", metavar="FILE", help="Check this file instead of `store.path`.")
@click.option("--quick", is_flag=True, help="Leave out SQLite's own check of every page.")
@click.option("--events", is_flag=True, help="Also read the events and dead letters over NATS, and compare.")
@form_option
@click.pass_context
def check(ctx: click.Context, /, *, place: str | None, quick: bool, events: bool, output: str, **arguments: Any) -> None:
    """Check that nothing was lost, nothing happened twice and everything adds up. Read-only, also while a worker runs.

    Exit 0: everything holds. 1: something does not; each violation is printed with its number and what to do. 78: no taskflow database,
    or one of another schema. 74: it cannot be read now. 69: --events, and NATS cannot be reached.
    """
    from nats_taskflow.cli.db import findings
    from nats_taskflow.store.invariants.findings import gather
    from nats_taskflow.store.sqlite.snapshot import open_snapshot

    config = load_with_database(arguments)
    where = place or config.store.path
    streams = _streams(config, where) if events else {}
    with open_snapshot(where) as opened, findings.progress(shown=output == "text") as tell:
        tell("opening", 0)
        evidence = build_evidence(config, opened.database, streams)
        result = gather(evidence, path=str(opened.path), worker=opened.worker, quick=quick, progress=tell)
    findings.show(result, output)
    ctx.exit(_VIOLATED if result.violations else 0)


def build_evidence(config: Config, database: Any, streams: dict[str, Any] | None = None) -> Evidence:
    """Put together what is checked: the database, and what both streams published."""
    from nats_taskflow.store.invariants import Evidence
    from nats_taskflow.wire.subjects import Subjects
    from nats_taskflow.wiring import REMEMBERED_TIMES

    remembered = int(config.stream.max_age * REMEMBERED_TIMES)
    subjects = Subjects(config.subjects.prefix)
    return Evidence(database, now=time.time_ns() // 1000, remembered=remembered, subjects=subjects, **(streams or {}))


def _streams(config: Config, place: str) -> dict[str, Any]:
    """Read what was published.

    First it reads how far publishing was: what a worker does meanwhile is no violation.
    """
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.observe.log import configure_logging
    from nats_taskflow.store.invariants.evidence import marks
    from nats_taskflow.store.sqlite.snapshot import open_snapshot

    with open_snapshot(place) as opened:
        published = marks(opened.database)
    ledgers: dict[str, Ledger] = {}
    configure_logging(config.log)
    interrupted = launch(_read(config, ledgers.__setitem__))
    if interrupted:
        raise Exit(interrupted)
    return {"marks": published, **ledgers}


async def _read(config: Config, keep: Callable[[str, Ledger], None]) -> int:
    """Read both streams into ledgers."""
    from nats_taskflow.bus.nats.inspect import StreamReader
    from nats_taskflow.bus.nats.options import nats_options
    from nats_taskflow.store.invariants import Ledger, LedgerMessage
    from nats_taskflow.wire.subjects import DEAD_LETTERS, EVENTS

    async with StreamReader(nats_options(config.nats)) as history:
        for name, stream in (("events", EVENTS), ("letters", DEAD_LETTERS)):
            ledger = Ledger(first=await history.first(stream))
            async for batch in history.messages(stream):
                ledger.add(LedgerMessage(message.seq, message.subject, message.headers, message.body) for message in batch)
            keep(name, ledger)
    return 0
