"""Answer questions from a database that `--db` opens read-only, without a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nats_taskflow.cli.protocol import Json, WorkerRefusal
from nats_taskflow.doors.admin.queries import Queries
from nats_taskflow.errors import FlowError
from nats_taskflow.store.sqlite.offline import OfflineReads
from nats_taskflow.store.sqlite.snapshot import open_snapshot
from nats_taskflow.version import program_version
from nats_taskflow.wire.admin_codec import read_operation
from nats_taskflow.wire.subjects import Subjects

if TYPE_CHECKING:
    from nats_taskflow.cli.output import Printer
    from nats_taskflow.config import Config


class OfflineSession:
    """A database that answers questions, and refuses everything else."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def ask(self, verb: str, **fields: Any) -> Json:
        """Answer a question as the worker would."""
        try:
            body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
            request = read_operation(verb, body)
            if not self._queries.answers(request):
                raise click.UsageError(f"{verb} changes something: it needs a worker, not --db")
            answer: Json = msgspec.json.decode(await self._queries.answer(request))
        except FlowError as refusal:
            raise WorkerRefusal({"code": refusal.code, "message": refusal.message, "details": refusal.details}) from refusal
        return answer

    async def ask_as_agent(self, agent: str, verb: str, **fields: Any) -> Json:  # noqa: ARG002 - the protocol's signature
        """Refuse: agents' requests change flows."""
        raise click.UsageError(f"{verb} needs a worker, not --db")


@contextmanager
def open_database(config: Config, place: str, printer: Printer) -> Iterator[OfflineSession]:
    """Open the database at `place` as one snapshot, and print a note on it."""
    with open_snapshot(place) as opened:
        running = f"; a worker (pid {opened.worker}) runs on it" if opened.worker is not None else "; no worker runs on it"
        printer.note(f"read-only snapshot of {opened.path}{running}")
        reads = OfflineReads(opened.database)
        subjects = Subjects(config.subjects.prefix)
        yield OfflineSession(Queries(reads, subjects, lambda: time.time_ns() // 1000, version=program_version()))
