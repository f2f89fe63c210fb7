"""Test your agents: the whole worker in memory with a clock you move, chaos by seed, or a real nats-server; with pytest or without.

`TaskflowWorld` is the worker in memory: `clock` moves its time, `chaos` disturbs it, `client` gives your agent its client, and the
asserts, methods of it and functions, say what is there instead. `TaskflowServer` is the same for a real nats-server and a real worker
process. `fixtures` offers both to pytest, which finds them by `plugin`. docs/testing.md shows how.

Below them: `memory` keeps worker, database and broker, `life` is one run of the worker, `timing` moves the event loop's time, `database`
runs SQLite without a thread, `transport` is the client's port in memory, `asserting`, `asserts` and `stories`
are the asserts.
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
    """Import what is asked for only now: pytest imports this package with its plugin in every run, whatever is tested."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib  # noqa: PLC0415  see above

    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'assertions')}"), name)
