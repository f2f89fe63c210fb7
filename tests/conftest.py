"""What all tests share: figures and fault rows for the closing lines, the size of a run, its order, and the choice of one scenario."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import structlog
from hypothesis import is_hypothesis_test, settings

from nats_taskflow.lazy_log import _configure as put_off
from tests import bytecode, order, tiers, zygote
from tests.faults.report import Row, commit, table
from tests.tiers import SIZE, Rotated, Tests, Tier, head, with_pages

pytest_plugins = ["nats_taskflow.testing.fixtures"]  # also where the package was installed before it had the entry point

SEED = int(os.environ.get("TASKFLOW_SEED", "20261121"))
EXAMPLES = {Tests.QUICK: 25, Tests.REST: 100, Tests.ALL: 100, Tests.NIGHTLY: 1000}
"""How many examples hypothesis makes up for each property."""
T = TypeVar("T")
_SCENARIO = re.compile(r'mark\.scenario\("([^"]+)"\)')


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of one fault scenario by name, and the writing of the table of durations."""
    parser.addoption("--scenario", default="", help="run one fault scenario; `list` names them all")
    parser.addoption("--write-durations", action="store_true", help="write tests/durations.tsv anew from this run")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Name the fault scenarios instead of running tests where that is asked for."""
    if config.getoption("--scenario") != "list":
        return None
    sources = [path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "faults").glob("test_*.py")]
    sys.stdout.writelines(f"{name}\n" for name in sorted({name for text in sources for name in _SCENARIO.findall(text)}))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Size hypothesis. Once, compile what every process would compile anew, and have hypothesis write its table."""
    # An example has no deadline: on a machine that does other things too, one that took long says nothing.
    settings.register_profile(SIZE, settings(), max_examples=EXAMPLES[SIZE], deadline=None)
    settings.load_profile(SIZE)
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:  # the suite runs in the background (`nohup`, `&`): our children would inherit that
            signal.signal(number, usual)
    if not hasattr(config, "workerinput"):  # not in each process of pytest-xdist
        here = Path(__file__).parent
        if not (here.parent / ".hypothesis" / "unicode_data").exists():  # two processes that begin to write it at once trip over each other
            program = "from hypothesis import strategies; strategies.text().validate()"
            subprocess.run([sys.executable, "-c", program], cwd=here.parent, check=True)
        bytecode.compile_worker()
        if config.getoption("numprocesses", None):
            bytecode.rewrite_asserts()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what the run plays, the longest first where there are processes to share it out to; give the long ones the time they need."""
    named = {item: str(mark.args[0]) for item in items if (mark := item.get_closest_marker("scenario")) is not None}
    if SIZE is Tests.NIGHTLY:
        for item in named:
            item.add_marker(pytest.mark.timeout(7200), append=False)
    chosen = played(config, items, named)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    if hasattr(config, "workerinput"):
        known = order.read(order.TABLE.read_text(encoding="utf-8"))
        chosen = [chosen[place] for place in order.longest_first([weighed(item, known) for item in chosen])]
    items[:] = chosen


def played(config: pytest.Config, items: list[pytest.Item], named: Mapping[pytest.Item, str]) -> list[pytest.Item]:
    """Return the chosen scenario alone, or the tests that somebody named one by one, or what belongs to a run of this size."""
    if wanted := config.getoption("--scenario"):
        chosen = [item for item in items if named.get(item) == wanted]
        if not chosen:
            raise pytest.UsageError(f"no scenario is called {wanted!r}; there are: {', '.join(sorted(set(named.values())))}")
        return chosen
    return items[:] if any("::" in argument for argument in config.args) else [item for item in items if belongs(item)]


def belongs(item: pytest.Item) -> bool:
    """Tell whether a test is part of a run of this size."""
    page = item.get_closest_marker("page") is not None
    return tiers.is_part(
        SIZE,
        full=item.get_closest_marker("full") is not None,
        sized=bool({"tier", "rotated"}.intersection(getattr(item, "fixturenames", ()))) or is_hypothesis_test(getattr(item, "obj", None)),
        page=page,
        pages=page and with_pages(),
    )


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> Iterator[None]:
    """Have every `python -m nats_taskflow` forked by the zygote."""
    with zygote.forks():
        yield


@pytest.fixture
def full_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the test's processes start in full, as a person's do: for what a fork does not show (see `tests.zygote`)."""
    monkeypatch.setattr(subprocess, "Popen", zygote.FULL)


def weighed(item: pytest.Item, known: dict[str, float]) -> tuple[str, float]:
    """Return the group that a test is handed out with, itself where it has none, and its seconds."""
    unlisted = order.MIDDLE if any(item.get_closest_marker(mark) for mark in ("e2e", "slow")) else 0.0
    return order.group(item.config.rootpath, item.nodeid), known.get(item.nodeid, unlisted)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> order.InGroups | None:
    """Hand the tests out by our own scheduler, in our order: pytest-xdist would begin with the groups of many tests."""
    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return order.InGroups(config, log)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a test's command sets up for its process, which here is everybody's, or puts off until something is logged."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    put_off.clear()
    root.handlers = handlers
    root.setLevel(level)
    if structlog.is_configured():
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
def tier(request: pytest.FixtureRequest) -> Tier:
    """Choose a number by the size of the run."""
    full = request.node.get_closest_marker("full") is not None

    def chosen(*, all: int, nightly: int, quick: int | None = None) -> int:  # noqa: A002  the values of TASKFLOW_TESTS
        assert (quick is None) == full, "a test that is marked full has no quick size, and any other has one"
        assert quick != all, "the same size twice: `make test-rest` would play the test again for nothing"
        if SIZE is Tests.NIGHTLY:
            return nightly
        return quick if SIZE is Tests.QUICK and quick is not None else all

    return chosen


@pytest.fixture
def rotated() -> Rotated:
    """Choose a share of the items in a quick run, which the commit rotates."""

    def chosen(items: Sequence[T], share: int) -> list[T]:
        return tiers.rotated(items, share, head()) if SIZE is Tests.QUICK else list(items)

    return chosen


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the figures that the tests have measured, the table of the fault runs, and what part of the tests this was."""
    stats = terminalreporter.stats
    reports = [report for kind in ("passed", "failed") for report in stats.get(kind, ())]
    noted = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    if figures := [text for name, text in noted if name == "figure"]:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(text)
    if rows := [msgspec.json.decode(text, type=Row) for name, text in noted if name == "fault"]:
        terminalreporter.section(f"fault runs of {commit()}")
        for line in table(sorted(rows, key=lambda row: row.scenario)):
            terminalreporter.line(line)
    terminalreporter.line("")
    terminalreporter.line(part())
    if config.getoption("--write-durations"):
        durations: dict[str, float] = defaultdict(float)
        for report in (report for kind in stats.values() for report in kind if isinstance(report, pytest.TestReport)):
            durations[report.nodeid] += report.duration
        order.TABLE.write_text(order.written(durations), encoding="utf-8")


def part() -> str:
    """Say what part of the tests a run plays."""
    if SIZE is not Tests.QUICK:
        return f"TASKFLOW_TESTS={SIZE}"
    pages = "with" if with_pages() else "without"
    return f"TASKFLOW_TESTS={SIZE} TASKFLOW_ROTATION={head()} {pages} the pages' tests; `make test-rest` plays what this left out"
