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

    runs = SimpleNamespace(run=for_ever)
    services: Any = SimpleNamespace(
        engine=SimpleNamespace(run=commit, store=SimpleNamespace(restored=False)),
        probes=SimpleNamespace(run=for_ever, watch_backlog=for_ever, watch_store=for_ever),
        systemd=SimpleNamespace(watch=for_ever),
        relays=(),
        consumers=(),
        tracing=None,
        waits=runs,
        dispatcher=runs,
        pruner=runs,
        inspector=runs,
        bus=SimpleNamespace(serve=serve, address="", lost=asyncio.get_running_loop().create_future()),
        api=SimpleNamespace(service=lambda _: None, handle=None),
    )
    ready: list[str] = []
    supervisor = Supervisor(services, version="0", tick_interval=1, startup_drain=1, drain=1)
    with pytest.raises(BaseExceptionGroup) as failed:
        await asyncio.wait_for(supervisor.run(StopSignal(), lambda: ready.append("ready")), 5)
    assert failed.group_contains(StoreBroken)
    assert ready == []
