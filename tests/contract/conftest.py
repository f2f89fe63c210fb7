"""Fixtures of the bus contract: a rig, and an open bus on it with the worker's streams prepared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nats_taskflow.bus.port import Bus
from tests.contract.rigs import EVT, IN, WORKER, JetStreamRig, Rig, jetstream_rig, memory_rig


@pytest.fixture(params=[memory_rig, jetstream_rig], ids=["memory", "jetstream"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """Either broker."""
    async with request.param(tmp_path / "nats") as made:
        yield made


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[JetStreamRig]:
    """The real server only."""
    async with jetstream_rig(tmp_path / "nats") as made:
        yield made


@pytest.fixture
async def bus(rig: Rig) -> AsyncIterator[Bus]:
    """An open connection with streams and consumer prepared."""
    made = rig.connect()
    await made.open()
    await made.prepare((IN, EVT), (WORKER,))
    yield made
    await made.close()
