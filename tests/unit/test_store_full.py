"""A full disk at the start ends the worker with one clear sentence and exit code 74 (CONTRACT 7)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nats_taskflow.errors import StoreBroken, Unavailable
from nats_taskflow.store.sqlite import store
from nats_taskflow.store.sqlite.lock import WriterLock


def test_a_lock_file_that_cannot_be_written_says_so_and_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lock = WriterLock(tmp_path / "flows.db")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StoreBroken, match="make room on its disk") as caught:
            lock.acquire()
    assert caught.value.exit_code == 74
    lock.acquire()
    lock.release()


async def test_a_database_that_cannot_grow_at_the_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise Unavailable("the database cannot take the change now: database or disk is full")

    path = str(tmp_path / "flows.db")
    with monkeypatch.context() as patched:
        patched.setattr(store, "migrate", full)
        with pytest.raises(StoreBroken, match="make room on its disk"):
            await store.SqliteFlowStore.open(path)
    await (await store.SqliteFlowStore.open(path)).close()
