"""What all tests share: figures and fault rows for the closing lines, the tier of a fault run, and the choice of one scenario."""

from __future__ import annotations

import compileall
import logging
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from tests import zygote
from tests.faults.report import Row, commit, table

pytest_plugins = ["worker.testing.fixtures"]  # also where the package was installed before it had the entry point

SEED = int(os.environ.get("TASKFLOW_SEED", "20261121"))
NIGHTLY = os.environ.get("TASKFLOW_FAULTS", "ci") == "nightly"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of one fault scenario by name."""
    parser.addoption("--scenario", default="", help="run one fault scenario; a name that does not exist lists them all")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the worker, once: where `PYTHONDONTWRITEBYTECODE` is set, each of the hundreds that the tests start would do it anew."""
    if not hasattr(config, "workerinput"):  # not in each process of pytest-xdist
        here = Path(__file__).parent
        for folder in (here.parent / "worker", here / "faults"):  # and what is planted in it
            compileall.compile_dir(folder, quiet=2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the chosen scenario alone on the list, and give the long ones the time they need."""
    named = {item: str(mark.args[0]) for item in items if (mark := item.get_closest_marker("scenario")) is not None}
    if NIGHTLY:
        for item in named:
            item.add_marker(pytest.mark.timeout(7200), append=False)
    if wanted := config.getoption("--scenario"):
        chosen = [item for item in items if named.get(item) == wanted]
        if not chosen:
            raise pytest.UsageError(f"no scenario is called {wanted!r}; there are: {', '.join(sorted(set(named.values())))}")
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> Iterator[None]:
    """Have every `python -m worker` forked by the zygote."""
    with zygote.forks():
        yield


@pytest.fixture
def full_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the test's processes start in full, as a person's do: for what a fork does not show (see `tests.zygote`)."""
    monkeypatch.setattr(subprocess, "Popen", zygote.FULL)


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Undo what a test's command sets up for its process, which here is everybody's."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a measured figure; the summary shows it."""
    return lambda text: record_property("figure", text)


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[Row], None]:
    """Note a fault scenario's row; the summary shows the table."""
    return lambda row: record_property("fault", msgspec.json.encode(row).decode())


@pytest.fixture
def dice() -> random.Random:
    """The seeded randomness of a run: the same seed, the same play (`TASKFLOW_SEED`)."""
    return random.Random(SEED)


@pytest.fixture
def tier() -> Callable[[int, int], int]:
    """Choose a size: the first in `make test`, the second in `make faults-nightly`."""
    return lambda ci, nightly: nightly if NIGHTLY else ci


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the figures that the tests have measured, and the table of the fault runs."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    noted = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    if figures := [text for name, text in noted if name == "figure"]:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(text)
    if rows := [msgspec.json.decode(text, type=Row) for name, text in noted if name == "fault"]:
        terminalreporter.section(f"fault runs of {commit()}")
        for line in table(sorted(rows, key=lambda row: row.scenario)):
            terminalreporter.line(line)
