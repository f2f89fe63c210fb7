"""Run a coroutine as the whole of this process, on uvloop where it is installed."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from nats_taskflow.cli.exit_codes import INTERRUPTED
from nats_taskflow.errors import Exhausted

_NO_THREAD = "can't start new thread"
"""How Python says it, in a `RuntimeError` that stands for other things as well."""

SWITCH_INTERVAL = 0.0002
"""Seconds for which one thread may hold the interpreter while another waits.

SQLite's thread gives it up at each statement. With Python's 5 ms it waits that long for a busy event loop, again and again: a batch took
four times as long.
"""


def launch(main: Coroutine[Any, Any, int], *, brief: bool = False) -> int:
    """Run `main` to its end and return its exit code.

    Raises `Exhausted` where the system gives no more threads. `brief`: it ends before a faster loop would have been loaded.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # what is imported by now stays for good: collections need not look through it
    try:
        with asyncio.Runner(loop_factory=None if brief else _loop_factory()) as runner:
            return runner.run(main)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RuntimeError as error:
        if _NO_THREAD not in str(error):
            raise
        message = "the system lets this process start no more threads: raise its limit (ulimit -u, TasksMax, pids.max), then start again"
        raise Exhausted(message) from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed (extra `speed`); None elsewhere."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
