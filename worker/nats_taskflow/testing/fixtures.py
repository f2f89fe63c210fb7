"""The pytest fixtures `taskflow` and `taskflow_{clock,chaos,nats}`.

pytest loads this module in every run of everybody who has the worker installed. So it imports nothing but pytest; what a fixture needs is
imported when a test asks for it. The fixtures are asynchronous and need pytest-asyncio. Async tests that use one of them need neither a
mark nor `asyncio_mode`: they get the mark here.
"""

from __future__ import annotations

import contextlib
import inspect
import zlib
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

_fixture: Callable[..., Any] = pytest.fixture
with contextlib.suppress(ImportError):  # the tests of somebody who does not use this kit have to run without it
    from pytest_asyncio import fixture as _fixture

if TYPE_CHECKING:
    from nats_taskflow.testing.chaos import Chaos
    from nats_taskflow.testing.clock import Clock
    from nats_taskflow.testing.server import TaskflowServer
    from nats_taskflow.testing.world import TaskflowWorld

_OURS = frozenset({"taskflow", "taskflow_nats", "taskflow_clock", "taskflow_chaos"})
_LOOPS = ("asyncio", "anyio", "trio")
_NUMBERED = r"ignore:Binding \d+ \('\?\d+'\) is a named parameter:DeprecationWarning"
"""Python 3.12.0 to 3.12.3 take `?1` for a name (python/cpython#117995)."""
_MARK = "taskflow(reply_topics=..., ...): what the fixtures taskflow (TaskflowWorld) and taskflow_nats (TaskflowServer) are made with"


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark `taskflow`."""
    config.addinivalue_line("markers", _MARK)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Silence a false alarm of Python's sqlite3 in every test.

    Any test may make a world by itself. A mark works against `-W error`, too.
    """
    for item in items:
        item.add_marker(pytest.mark.filterwarnings(_NUMBERED))


@pytest.hookimpl(wrapper=True, trylast=True)  # the innermost: pytest-asyncio's looks for the mark right after it
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Mark async tests that use our fixtures for pytest-asyncio.

    Its default mode, `strict`, would not run them otherwise.
    """
    made = yield
    for item in made if isinstance(made, list) else [made]:
        if isinstance(item, pytest.Function) and _needs_mark(item):
            item.add_marker("asyncio")
    return made


def _needs_mark(test: pytest.Function) -> bool:
    """Check whether an async test uses our fixtures and names no runner itself."""
    ours = inspect.iscoroutinefunction(test.obj) and not _OURS.isdisjoint(test.fixturenames)
    return ours and not any(test.get_closest_marker(loop) for loop in _LOOPS)


def _settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the settings in the test's marks. The nearest mark wins."""
    settings: dict[str, Any] = {}
    for mark in request.node.iter_markers("taskflow"):
        settings = {**mark.kwargs, **settings}
    return settings


def _checked(request: pytest.FixtureRequest, made: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings; fail the test, in a sentence, for an unknown one."""
    takes = [name for name in inspect.signature(made).parameters if name != "self"]
    for name in settings:
        if name not in takes:
            from nats_taskflow.text import meant  # noqa: PLC0415  see above

            hint = meant(name, takes) or f"; it takes {', '.join(takes)}"
            message = f"@pytest.mark.taskflow has no setting {name!r} for the fixture {request.fixturename}{hint}"
            pytest.fail(message, pytrace=False)
    return settings


@_fixture
async def taskflow(request: pytest.FixtureRequest) -> AsyncIterator[TaskflowWorld]:
    """Give the whole worker in memory, with a virtual clock.

    It is a `nats_taskflow.testing.TaskflowWorld`.
    """
    from nats_taskflow.testing.world import TaskflowWorld  # noqa: PLC0415  see above

    # The same test has the same chaos in every run, and another one than its neighbours.
    settings = {"seed": zlib.crc32(request.node.nodeid.encode()), **_settings(request)}
    async with TaskflowWorld(**_checked(request, TaskflowWorld, settings)) as world:
        yield world


@pytest.fixture
def taskflow_clock(taskflow: TaskflowWorld) -> Clock:
    """Give the clock of `taskflow`, which the test moves.

    For instance `await taskflow_clock.advance("3d")`.
    """
    return taskflow.clock


@pytest.fixture
def taskflow_chaos(taskflow: TaskflowWorld) -> Chaos:
    """Give the controls for faults in the worker of `taskflow`.

    After the test the worker's promises are checked.
    """
    return taskflow.chaos


@_fixture
async def taskflow_nats(request: pytest.FixtureRequest) -> AsyncIterator[TaskflowServer]:
    """Give a real nats-server with a real worker process on it.

    It is a `nats_taskflow.testing.TaskflowServer`.
    """
    from nats_taskflow.testing.server import TaskflowServer  # noqa: PLC0415  see above

    async with TaskflowServer(**_checked(request, TaskflowServer, _settings(request))) as server:
        yield server
