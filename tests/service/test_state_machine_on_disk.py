"""The machine of `test_state_machine` on real files: a crash leaves the database and its log as they are at that moment (SEMANTICS R11).

The files are copied at the moment of death, and the next worker opens the copy: what the dead one had in memory, or does when it is closed
afterwards, reaches nobody.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from nats_taskflow.engine.engine import Engine
from nats_taskflow.store.port import Work
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.testing.database import Killed
from tests.service.test_state_machine import LONG, POLICY, SHARE, Machine, shared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 120)]


class Mortal:
    """Makes a store die `before` or `after` its next commit, and keeps its files as they are then at `remains`."""

    def __init__(self, store: SqliteFlowStore, remains: Path) -> None:
        self.store = store
        self.remains = remains
        self.death: str | None = None
        self._transact = store.transact
        store.transact = self._mortally  # type: ignore[method-assign]

    async def _mortally(self, work: Work[Any]) -> Any:
        """Do the work, and die on one side of its commit if it is time."""

        def last(transaction: SqliteTransaction) -> Any:
            done = work(transaction)
            if self.death == "before":
                self._die()
            return done

        done = await self._transact(last)  # type: ignore[arg-type]
        if self.death == "after":
            self._die()
        return done

    def _die(self) -> None:
        for suffix in ("", "-wal"):
            shutil.copy(self.store.place + suffix, f"{self.remains}{suffix}")
        raise Killed

    async def close(self) -> None:
        """Close the store; one that died only lets go of what a dead process would not hold any more."""
        if not self.remains.exists():
            await self.store.close()
            return
        self.store._closed = True
        assert self.store._lock is not None
        for connection in self.store.connections:
            await connection.close()
        self.store._lock.release()


class DiskMachine(Machine):
    """The machine on files."""

    mortal: Mortal | None = None

    def new(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taskflow-machine-"))
        self.path = self.folder / "0.db"
        self.database = sqlite3.connect(":memory:")

    def open(self) -> None:
        self.close()
        if self.mortal is not None and self.mortal.remains.exists():
            self.path = self.mortal.remains
        self.store = self.run(SqliteFlowStore.open(str(self.path)))
        self.mortal = Mortal(self.store, self.path.with_name(f"{int(self.path.stem) + 1}.db"))
        self.engine = Engine(self.store, clock=self.clock, policy=POLICY)
        self.database = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None)

    def close(self) -> None:
        """Close what is open: the next worker has its own files."""
        self.database.close()
        if self.mortal is not None:
            self.run(self.mortal.close())

    def arm(self, fuse: int | None) -> None:
        assert self.mortal is not None
        self.mortal.death = "after" if fuse is None else "before"

    def disarm(self) -> None:
        assert self.mortal is not None
        self.mortal.death = None

    def teardown(self) -> None:
        super().teardown()
        self.close()
        shutil.rmtree(self.folder)


TestTheEngineDoesTheSameOnDisk = shared(DiskMachine).TestCase
TestTheEngineDoesTheSameOnDisk.settings = settings(
    max_examples=1000 if LONG else 52 // SHARE,
    stateful_step_count=30 if LONG else 15,
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
