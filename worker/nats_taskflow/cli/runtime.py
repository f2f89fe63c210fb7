"""Run a coroutine as the whole life of this process, on uvloop where it is installed."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from nats_taskflow.errors import Exhausted

_NO_THREAD = "can't start new thread"
"""How Python says it, in a `RuntimeError` that says other things too."""

INTERRUPTED = 130
"""The exit code after Ctrl-C where nothing else is made of it: 128 + SIGINT, as shells have it."""

SWITCH_INTERVAL = 0.0002
"""Seconds for which one thread may keep another from going on. SQLite's thread gives the interpreter up at each statement; with Python's
5 ms it waits that long for the busy event loop, again and again: a batch took four times as long.
"""


def launch(main: Coroutine[Any, Any, int], *, brief: bool = False) -> int:
    """Run `main` to its end and give its exit code. Raises `Exhausted` where the system gives no thread for it.

    `brief`: it is over before a faster loop would have been loaded.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # what is imported by now stays for good: not to be looked through each time
    try:
        with asyncio.Runner(loop_factory=None if brief else _loop_factory()) as runner:
            return runner.run(main)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as bad:
        if _NO_THREAD not in str(bad):
            raise
        message = "the system lets this process start no more threads: raise its limit (ulimit -u, TasksMax, pids.max), then start again"
        raise Exhausted(message) from bad


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give uvloop's loop when the extra `speed` is installed, else None for the standard one."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
