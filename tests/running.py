"""Run parts of the worker in a test: an engine on a store, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import msgspec

from nats_taskflow.doors.flow_manager import CreateManagedInput, FlowManager
from nats_taskflow.engine.engine import Engine
from nats_taskflow.flow.policy import Policy
from nats_taskflow.services.wait_engine import WaitEngine
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.units import Micros, to_datetime, to_micros

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class VirtualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime = START) -> None:
        self.us: Micros = to_micros(at)

    def __call__(self) -> Micros:
        return self.us

    @property
    def now(self) -> datetime:
        return to_datetime(self.us)

    def advance(self, **parts: float) -> datetime:
        self.us += timedelta(**parts) // timedelta(microseconds=1)
        return self.now


class Running(msgspec.Struct, frozen=True):
    """What a test works with."""

    store: SqliteFlowStore
    engine: Engine
    manager: FlowManager
    waits: WaitEngine
    clock: VirtualClock


@contextlib.asynccontextmanager
async def running(path: str = ":memory:", *, clock: VirtualClock | None = None, policy: Policy | None = None) -> AsyncIterator[Running]:
    """Open a store, run an engine on it, and close both."""
    clock = clock or VirtualClock()
    store = await SqliteFlowStore.open(path)
    engine = Engine(store, clock=clock, policy=policy or Policy())
    manager = FlowManager(engine)
    committing = asyncio.create_task(engine.run())
    try:
        yield Running(store, engine, manager, WaitEngine(engine), clock)
    finally:
        engine.close()
        await committing
        await store.close()


def an_input(**changes: object) -> CreateManagedInput:
    """Return what a flow starts with; a test names only what matters to it."""
    base = {
        "controller_id": "test",
        "goal": "test",
        "owner_session_key": "owner",
        "requester_origin": "user",
        "current_step": "init",
        "state_json": {},
    }
    return CreateManagedInput(**{**base, **changes})  # type: ignore[arg-type]
