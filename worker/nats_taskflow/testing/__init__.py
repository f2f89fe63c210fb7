"""Test kit for agents: the worker in memory on a virtual clock, or a real one.

`TaskflowWorld` is the worker in memory: `clock` moves its time, `chaos` injects faults by seed, `client` gives your agent its client.
The asserts are its methods, and functions too. One that fails shows the flow's story. `TaskflowServer` offers the same on a real
nats-server with a real worker process. `fixtures` offers both to pytest, which loads it through `plugin`. Both work without pytest, too.
docs/testing.md shows how.

Below them: `memory` keeps worker, database and broker; `worker_run` is one run of the worker; `loop_time` moves the event loop's time;
`database` runs SQLite without a thread; `transport` is the client's port in memory; `assertions` and `stories` are the asserts and the
stories that they show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nats_taskflow.testing.assertions import (
        assert_cancelled,
        assert_events,
        assert_failed,
        assert_finished,
        assert_running,
        assert_waiting,
    )
    from nats_taskflow.testing.chaos import Chaos
    from nats_taskflow.testing.clock import Clock
    from nats_taskflow.testing.server import TaskflowServer
    from nats_taskflow.testing.world import TaskflowWorld

__all__ = [
    "Chaos",
    "Clock",
    "TaskflowServer",
    "TaskflowWorld",
    "assert_cancelled",
    "assert_events",
    "assert_failed",
    "assert_finished",
    "assert_running",
    "assert_waiting",
]

_HOMES = {"Chaos": "chaos", "Clock": "clock", "TaskflowServer": "server", "TaskflowWorld": "world"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    pytest imports this package with its plugin in every run, whatever is tested, so the import has to be cheap.
    """
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib  # noqa: PLC0415  see above

    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'assertions')}"), name)
