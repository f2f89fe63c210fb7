"""Run a coroutine as the whole life of this process, on uvloop where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import Any

INTERRUPTED = 130
"""The exit code after Ctrl-C before the worker listens to signals: 128 + SIGINT, as shells have it."""


def launch(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` to its end and give its exit code."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main)
    except KeyboardInterrupt:
        return INTERRUPTED


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's loop when the extra `speed` is installed, else None for the standard one."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
