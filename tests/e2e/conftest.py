"""Fixtures of the end-to-end tests: the stage with a worker that is ready, and an agent on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.stage import Agent, Stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A broker, and a worker that is ready."""
    async with Stage(tmp_path) as made:
        yield made


@pytest.fixture
async def kate(stage: Stage) -> Agent:
    """The agent `kate`."""
    return await stage.agent("kate")
