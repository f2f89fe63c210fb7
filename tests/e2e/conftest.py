"""Fixtures of the end-to-end tests: the stage with a worker that is ready, an agent on it, and figures for the summary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a measured figure; the summary shows it."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the figures that the tests have measured."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    figures = [text for report in reports for name, text in getattr(report, "user_properties", ()) if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(text)
