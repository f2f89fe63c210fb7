"""Open and close the SQLite database, and own its connections.

Opening does these in order: place, lock, checks, settings, migrations; then one writer and two readers. The order is the promise: nothing
is written before the file is known to be ours, whole and not newer (RELIABILITY 6).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiosqlite

from nats_taskflow.errors import StoreBroken, StoreLocked, Unavailable
from nats_taskflow.store.port import Reads, Result, Work
from nats_taskflow.store.sqlite import rows
from nats_taskflow.store.sqlite.errors import translate_errors
from nats_taskflow.store.sqlite.load import Sequences
from nats_taskflow.store.sqlite.lock import WriterLock
from nats_taskflow.store.sqlite.opening import MEMORY, configure, create_private_file, guard, identify, migrate, verify
from nats_taskflow.store.sqlite.place import check_place, disk_room
from nats_taskflow.store.sqlite.reads import SqliteReads
from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.store.sqlite.steps import FetchedRows, fetch
from nats_taskflow.store.sqlite.transaction import SqliteTransaction

_CLOSED = "the database is closed"


class QueryConnection(SqliteReads):
    """The reads on a connection, and so a thread, of their own."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__()
        self.connection = connection

    async def _fetch(self, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None) -> FetchedRows:
        return await _fetch_on(self.connection, sql, parameters, room, heavy)


class SqliteFlowStore(SqliteReads):
    """A flow database in one SQLite file (or `:memory:`).

    Open it with `open`; one worker at a time.
    """

    def __init__(self, writer: aiosqlite.Connection, lock: WriterLock | None, place: str) -> None:
        super().__init__()
        self._writer = writer
        self._reader: aiosqlite.Connection | None = None
        self._queries: QueryConnection | None = None
        self._lock = lock
        self._place = place
        self._upkeep = statements("upkeep")
        self._epoch = 0
        self._identity = ""
        self._sequences = Sequences()
        self._closed = False
        self._recovered = False
        self._restored = False

    @classmethod
    async def open(cls, path: str) -> SqliteFlowStore:
        """Open the database at `path`, or a fresh one at `:memory:`.

        A missing one is created, an old one migrated. Raises `StoreRefused` for a file that is foreign, newer, damaged or badly placed,
        which is left untouched; `StoreLocked` when another worker holds it.
        """
        if path == MEMORY:
            writer = await configure(await aiosqlite.connect(MEMORY, isolation_level=None), file=False)
            store = cls(writer, None, MEMORY)
            await store._take_over()
            return store
        file = check_place(path)
        await identify(file)  # before anything is left beside it
        lock = WriterLock(file)
        lock.acquire()
        try:
            return await cls._open_file(file, lock)
        except Unavailable as full:
            lock.release()
            message = f"store.path: {file} cannot be opened for writing: {full.message}; make room on its disk, then start again"
            raise StoreBroken(message) from full
        except BaseException:
            lock.release()
            raise

    @classmethod
    async def _open_file(cls, file: Path, lock: WriterLock) -> SqliteFlowStore:
        """Open the locked file: guard, verify, configure, migrate, take over."""
        await asyncio.to_thread(guard, file)
        await verify(file)
        await asyncio.to_thread(create_private_file, file)
        writer = await _connect(str(file))
        try:
            await configure(writer, file=True)
            store = cls(writer, lock, str(file))
            await store._take_over()
            store._reader = await _connect_reader(file)
            store._queries = QueryConnection(await _connect_reader(file))
        except sqlite3.Error as bad:
            await writer.close()
            raise _start_error(translate_errors(bad), file) from bad
        except BaseException:
            await writer.close()
            raise
        return store

    async def _take_over(self) -> None:
        """Migrate, count this worker's epoch, and mark the database as in use.

        The mark stays until `close`.
        """
        await migrate(self._writer, self._place)
        await self._writer.execute_fetchall("BEGIN IMMEDIATE")
        self._recovered = await self._meta("clean") == 0
        self._epoch = await self._meta("epoch") + 1
        await self._set_meta("epoch", self._epoch)
        self._identity = f"{await self._meta('database'):016x}"
        await self._set_meta("clean", 0)
        await self._writer.execute_fetchall("COMMIT")
        self._sequences = Sequences(*next(iter(await self._writer.execute_fetchall(self._upkeep["last_numbers"]))))
        self._restored = bool(list(await self._writer.execute_fetchall(self._ask["was_restored"])))

    async def _meta(self, name: str) -> int:
        rows = list(await self._writer.execute_fetchall(self._upkeep["get_meta"], (name,)))
        return int(rows[0][0])

    async def _set_meta(self, name: str, value: int) -> None:
        await self._writer.execute_fetchall(self._upkeep["set_meta"], (name, value))

    @property
    def epoch(self) -> int:
        """How many workers have opened the database so far."""
        return self._epoch

    @property
    def recovered(self) -> bool:
        """Whether the last worker left the database without closing it."""
        return self._recovered

    @property
    def restored(self) -> bool:
        """Whether it is a copy that has to catch up."""
        return self._restored

    @property
    def identity(self) -> str:
        """Which database it is, the same in every copy."""
        return self._identity

    @property
    def place(self) -> str:
        """The file's real path."""
        return self._place

    async def transact(self, work: Work[Result]) -> Result:
        """Do the work in one transaction; see the port.

        One hop to the connection's thread and back: a hop costs as much as ten statements, and aiosqlite's public calls make one or two
        for each statement.
        """
        if self._closed:
            raise Unavailable(_CLOSED)
        done: Result = await self._writer._execute(self._run_transaction, self._writer._conn, work)  # type: ignore[no-untyped-call]  # noqa: SLF001  # see above
        return done

    def _run_transaction(self, database: sqlite3.Connection, work: Work[Result]) -> Result:
        """Begin, do the work and commit, on the connection's thread.

        Nothing else gets between: no other thread writes.
        """
        transaction = SqliteTransaction(database, self._epoch, self._sequences)
        try:
            transaction.begin()
            done = work(transaction)
            transaction.commit()
        except sqlite3.Error as bad:
            transaction.rollback()
            raise translate_errors(bad) from bad
        except BaseException:
            transaction.rollback()
            raise
        self._sequences = transaction.last
        return done

    @property
    def queries(self) -> Reads:
        """The reads on the other reading connection.

        In memory there is only one connection.
        """
        return self._queries or self

    async def _fetch(self, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None) -> FetchedRows:
        # In memory the only connection's thread does a transaction in one go.
        if self._closed:
            raise Unavailable(_CLOSED)
        return await _fetch_on(self._reader or self._writer, sql, parameters, room, heavy)

    async def ping(self) -> None:
        """Answer on the writer's thread and the reader's.

        Either can hang while the other answers. The queries' thread may be busy.
        """
        await super().ping()
        await self._writer.execute_fetchall("SELECT 1")

    async def room(self) -> Mapping[str, int]:
        """Ask the file system, by name, how large the files are.

        Opening the file and closing it again would release SQLite's locks. It is asked on the reader's thread: a disk that hangs must not
        block the loop, and no thread is started while the worker works.
        """
        if self._closed or self._reader is None:
            return {}
        sizes: dict[str, int] = await self._reader._execute(disk_room, Path(self._place))  # type: ignore[no-untyped-call]  # noqa: SLF001  # no public way
        return sizes

    @property
    def connections(self) -> tuple[aiosqlite.Connection, ...]:
        """Every open connection, the writing one last."""
        reading = (self._reader, self._queries.connection if self._queries is not None else None)
        return (*(connection for connection in reading if connection is not None), self._writer)

    async def close(self) -> None:
        """Close cleanly: the log is folded into the file.

        Then the next start need not check it.
        """
        if self._closed:
            return
        self._closed = True
        for connection in self.connections[:-1]:
            await connection.close()
        try:
            # Only by the worker whose database it still is: a newer one has not left it clean.
            await self._writer.execute_fetchall(self._upkeep["leave_clean"], (self._epoch,))
            await self._writer.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as bad:
            raise StoreBroken(f"the database could not be closed cleanly: {bad}") from bad
        finally:
            await self._writer.close()
            if self._lock is not None:
                self._lock.release()


async def _connect_reader(file: Path) -> aiosqlite.Connection:
    """Connect for reading only."""
    connection = await _connect(f"{file.as_uri()}?mode=ro", uri=True)
    for pragma in ("query_only = ON", "busy_timeout = 2000", "trusted_schema = OFF", "mmap_size = 0"):
        await connection.execute_fetchall(f"PRAGMA {pragma}")
    connection.text_factory = rows.legible
    return connection


async def _fetch_on(
    connection: aiosqlite.Connection, sql: str, parameters: Sequence[Any], room: int, heavy: int | None = None
) -> FetchedRows:
    fetched: FetchedRows = await connection._execute(fetch, connection._conn, sql, parameters, room, heavy)  # type: ignore[no-untyped-call]  # noqa: SLF001  # aiosqlite's own calls hop to the thread for each step
    return fetched


async def _connect(database: str, **options: Any) -> aiosqlite.Connection:
    # The thread must not keep the process alive: after a close that failed, the worker must end all the same.
    connection = aiosqlite.connect(database, isolation_level=None, **options)
    connection._thread.daemon = True  # noqa: SLF001  # there is no other way; what the thread leaves undone, a crash would undo too
    return await connection


def _start_error(error: Exception, file: Path) -> Exception:
    """Return the error that ends a start.

    An `Unavailable` asks for a later try, and at a start nobody makes one.
    """
    if not isinstance(error, Unavailable):
        return error
    if error.details.get("full"):
        return StoreBroken(f"store.path: there is no room to open {file} ({error.message}): make room, then start again")
    return StoreLocked(f"store.path: another process keeps {file} from being opened ({error.message}): let it finish, then start again")
