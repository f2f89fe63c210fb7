"""Tell a missing permission from silence.

The server reports what it refused as an error of the connection; whoever waits for an answer hears nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
DenialListeners = list[Callable[[str], None]]
"""Called with each subject that the server denies, in lower case as nats-py gives it. They are quick and do not raise."""


class SubjectDenied(Exception):
    """The credentials may not use `subject` (in lower case)."""

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.subject = subject


async def unless_denied(
    work: Coroutine[Any, Any, T], listeners: DenialListeners, concerns: Callable[[str], bool] = lambda _subject: True
) -> T:
    """Await `work`, unless the server denies a subject.

    Raises `SubjectDenied` as soon as it denies one for which `concerns` is true.
    """
    denied: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def deny(subject: str) -> None:
        if concerns(subject) and not denied.done():
            denied.set_result(subject)

    task = asyncio.ensure_future(work)
    task.add_done_callback(_retrieve_exception)
    either: set[asyncio.Future[Any]] = {task, denied}
    listeners.append(deny)
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if denied.done():
            raise SubjectDenied(denied.result())
        return task.result()
    finally:
        listeners.remove(deny)
        task.cancel()


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    # Else asyncio would log it where a denial came first.
    if not task.cancelled():
        task.exception()
