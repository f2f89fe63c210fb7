"""Resolve futures that may be cancelled, and run a coroutine to its end.

The waiter may be gone in both cases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any


async def run_shielded(step: Coroutine[Any, Any, None]) -> None:
    """Run a step to its end even when cancelled meanwhile.

    Cancelling an await does not cancel the SQL (ARCHITECTURE 3).
    """
    task = asyncio.ensure_future(step)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure from None
        raise


def new_future() -> asyncio.Future[Any]:
    """Make a future on the running loop."""
    return asyncio.get_running_loop().create_future()


def resolve(future: asyncio.Future[Any], result: Any) -> None:
    """Resolve a future that its waiter may have cancelled."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Fail a future that its waiter may have cancelled."""
    if not future.done():
        future.set_exception(error)


def fail_all(futures: Iterable[asyncio.Future[Any]], error: BaseException) -> None:
    """Fail what is still waiting."""
    for future in futures:
        fail(future, error)
