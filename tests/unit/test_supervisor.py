"""The supervisor ends when one of its services fails, whatever else happens at that moment."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from nats_taskflow.errors import StoreBroken
from nats_taskflow.services.signals import StopSignal
from nats_taskflow.services.supervisor import Supervisor


async def for_ever(*_: Any) -> None:
    await asyncio.Event().wait()


async def test_a_failure_is_not_lost_where_the_client_of_nats_swallows_the_cancellation() -> None:
    """nats-py does so while the service is registered: the worker said that it was ready, and nothing of it ran."""
    serving = asyncio.Event()

    async def serve(*_: Any) -> None:
        serving.set()
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()

    async def commit() -> None:
        await serving.wait()
        raise StoreBroken("an I/O error")

    service: Any = SimpleNamespace(run=for_ever)
    engine: Any = SimpleNamespace(run=commit, store=SimpleNamespace(restored=False))
    bus: Any = SimpleNamespace(address="", lost=asyncio.get_running_loop().create_future())
    ready: list[str] = []
    supervisor = Supervisor(
        engine,
        bus,
        consumers=(),
        relays=(),
        timers=service,
        observers={"probes": service},
        background={"pruner": service},
        serve=serve,
        listeners=(),
        tick_interval=1,
        startup_drain=1,
        drain=1,
    )
    with pytest.raises(BaseExceptionGroup) as failed:
        await asyncio.wait_for(supervisor.run(StopSignal(), lambda: ready.append("ready")), 5)
    assert failed.group_contains(StoreBroken)
    assert ready == []
