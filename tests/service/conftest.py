"""What every test of this folder leaves behind: nothing, also when it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nats_taskflow.store.sqlite.store import SqliteFlowStore


@pytest.fixture(autouse=True)
async def _no_survivors(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Close what a failed test left open: the threads of its connections would keep the process from ending."""
    opened: list[SqliteFlowStore] = []
    open_store = SqliteFlowStore.open

    async def recording(path: str) -> SqliteFlowStore:
        opened.append(await open_store(path))
        return opened[-1]

    monkeypatch.setattr(SqliteFlowStore, "open", recording)
    yield
    for store in opened:
        for connection in store.connections:
            await connection.close()
        if store._lock is not None:
            store._lock.release()
