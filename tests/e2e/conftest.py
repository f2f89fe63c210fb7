"""Fixtures of the end-to-end tests: a stage of the test's own with the agent `kate`, or the world that many tests share.

A test that ends or reconfigures broker or worker, or that looks at everything there is, takes `stage` and `kate`. Any other takes `world`
and `agent`: whoever has another name sees nothing of it, which is a promise of the product.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.shared import SharedStage
from tests.e2e.stage import Agent, Stage, World


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A broker, and a worker that is ready."""
    async with Stage(tmp_path) as made:
        yield made


@pytest.fixture
async def kate(stage: Stage) -> Agent:
    """The agent `kate`."""
    return await stage.agent("kate")


@pytest.fixture(scope="session")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedStage]:
    """The stage that the tests of this process share. Of the whole run, not of a file: the tests of a file need not follow each other."""
    shared = SharedStage(tmp_path_factory.mktemp("shared"))
    yield shared
    assert shared.close() == []


@pytest.fixture
async def world(shared_stage: SharedStage, tmp_path: Path) -> AsyncIterator[World]:
    """A broker and a worker that others use too."""
    async with shared_stage.visit(tmp_path) as visited:
        yield visited


@pytest.fixture
async def agent(world: World) -> Agent:
    """An agent of the shared world, with a name that nobody else has."""
    return await world.agent(f"kate-{uuid4().hex[:8]}")
