"""Start tasks of which none may end in silence.

It would leave the program standing still.

A task can end without a word: nobody looks at its exception, or what it waited for was cancelled by somebody else (nats-py does so), which
asyncio takes for its own cancellation. Here, what goes on for ever either goes on after a rest (`repeat`), or its end is an error: of the
group that it belongs to (`Tasks`), or, where it belongs to none (`keep`), of the loop. So is an exception in a callback. Whoever owns the
loop ends with it (`LastResort`).
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Self

from nats_taskflow.errors import Defect, Refusal
from nats_taskflow.lazy_log import Logger

REST = 1.0
"""Seconds before the next step of what goes on for ever, where one has failed."""
_LASTING = "lasting"
"""The key under which the loop's exception handler finds the name of a task that should not have ended."""
_log = Logger()


def heed_cancellation() -> None:
    """Raise the cancellation of this task that something awaited has swallowed.

    Nats-py does, now and then.

    Who goes on instead is never ended, and whoever waits for the end waits for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def repeat(step: Callable[[], Awaitable[object]], name: str, *, rest: float = REST) -> NoReturn:
    """Take one step after another until cancelled.

    One that fails is told of, and the next comes after a rest. Raises a `Refusal`.
    """
    while True:
        try:
            await step()
        except Refusal:
            raise
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  see above; a MemoryError, as a rule
            heed_cancellation()
            _log.error("task_failed", task=name, retry_in=rest, exc_info=failure)
            await asyncio.sleep(rest)
        heed_cancellation()


def keep(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start what is to last until it is cancelled or done.

    Its failure is the loop's, for nobody waits for it.
    """
    return watch(_begun(asyncio.get_running_loop(), work, name))


def watch(task: asyncio.Task[None]) -> asyncio.Task[None]:
    """Make the failure of a task that is to last the loop's, whoever has started it."""
    task.add_done_callback(_report)
    return task


def _begun(where: asyncio.AbstractEventLoop | asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    task = where.create_task(_lasting(work, name), name=name)
    task.add_done_callback(lambda _: work.close())  # Python complains of one that was cancelled before it began
    return task


async def _lasting(work: Awaitable[None], name: str) -> None:
    """Do it. Raises `Defect` where somebody else's cancellation ends it."""
    try:
        await work
    except asyncio.CancelledError as foreign:
        heed_cancellation()
        raise Defect(f"the task {name!r} was cancelled by what it waited for") from foreign


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        name = task.get_name()
        task.get_loop().call_exception_handler({"message": f"{name} has failed", "exception": failure, _LASTING: name})


class Tasks:
    """A `TaskGroup` of what lasts: `async with`.

    The first that fails ends the others, and the block.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._group.__aexit__(kind, error, trace)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start what is to last until it is cancelled or done."""
        return _begun(self._group, work, name)


class Errands:
    """Tasks that nobody waits for, each with an end of its own.

    A failure is one errand's, and told of.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()  # the loop keeps weak references only

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None], name: str, *, context: contextvars.Context | None = None) -> asyncio.Task[None]:
        """Start one."""
        task = asyncio.get_running_loop().create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def finish(self, timeout: float | None = None) -> None:
        """Wait until all are done, at most `timeout` seconds.

        Those included that begin meanwhile.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("errand_failed", task=task.get_name(), exc_info=failure)


class LastResort:
    """Ends the process where something fails that nobody waits for.

    It is about the running loop, while the `with` block lasts.

    A callback, or a task that was to last: what it left undone nobody knows, and what waits for it may wait for ever, the stop as well.
    So it is not stopped but ended, as by `kill -9`, which the next start is made for. `end` is called with the exit code.
    """

    def __init__(self, end: Callable[[int], None] = os._exit) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        self._before = self._loop.get_exception_handler(), sys.unraisablehook, threading.excepthook
        self._loop.set_exception_handler(self._on_loop)
        sys.unraisablehook = self._on_unraisable
        threading.excepthook = self._on_thread
        return self

    def __exit__(self, *_: object) -> None:
        handler, sys.unraisablehook, threading.excepthook = self._before
        self._loop.set_exception_handler(handler)

    def _on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End, but for what is left of a task of its own end, or of a connection.

        That is only logged.
        """
        failure = context.get("exception")
        if failure is not None and (_LASTING in context or "handle" in context or context.keys() <= {"exception", "message"}):
            self._fail(str(context.get("message")), failure)
        else:
            loop.default_exception_handler(context)

    def _on_unraisable(self, left: sys.UnraisableHookArgs) -> None:
        """End where there is not even memory to tell the loop, or to clean up.

        uvloop drops a callback then.
        """
        self._for_memory(left.exc_value, lambda: self._before[1](left))

    def _on_thread(self, ended: threading.ExceptHookArgs) -> None:
        self._for_memory(ended.exc_value, lambda: self._before[2](ended))

    def _for_memory(self, failure: BaseException | None, otherwise: Callable[[], object]) -> None:
        """End for want of memory."""
        if isinstance(failure, MemoryError):
            self._fail("the system gives the process too little memory", failure)
        else:
            otherwise()

    def _fail(self, what: str, failure: BaseException) -> None:
        """Say so, if that can be said, and end."""
        try:
            _log.error("worker.failed", why=f"{what}: {failure!r}; the next start goes on where this one was", exc_info=failure)
        finally:
            self._end(Defect.exit_code)
