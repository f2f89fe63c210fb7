"""Tell silence from a missing permission: the server says on the side what it refused, and nothing where it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from nats_taskflow.bus.nats import options as connection_options
from nats_taskflow.client.transport import NotPermitted

_T = TypeVar("_T")
_REMEMBERED = 256


class Permissions:
    """What one connection's credentials turned out not to permit."""

    def __init__(self) -> None:
        self._asked: dict[str, set[asyncio.Future[None]]] = {}
        self._denied: set[str] = set()

    async def needed(self, subject: str, asking: Coroutine[Any, Any, _T]) -> _T:
        """Return the result. Raises `NotPermitted` as soon as the server says that the credentials may not use the subject."""
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._asked.setdefault(subject.lower(), set())
        waiting.add(denied)
        task = asyncio.ensure_future(asking)
        task.add_done_callback(_look)
        either: set[asyncio.Future[Any]] = {task, denied}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if denied.done():
                raise refusal(subject)
            return task.result()
        finally:
            task.cancel()
            waiting.discard(denied)
            if not waiting:
                self._asked.pop(subject.lower(), None)

    def check(self, subject: str) -> None:
        """Raise `NotPermitted` if the server has refused the subject since the last check."""
        if subject.lower() in self._denied:
            self._denied.discard(subject.lower())
            raise refusal(subject)

    def note(self, error: Exception) -> None:
        """Take what the server said."""
        denied = connection_options.denied(str(error))
        if denied is None:
            return
        subject = denied.subject
        if len(self._denied) < _REMEMBERED:
            self._denied.add(subject)
        for future in self._asked.get(subject, ()):
            if not future.done():
                future.set_result(None)


def _look(task: asyncio.Future[Any]) -> None:
    """Look at how it ended: where a permission is missing nobody else does, and asyncio would complain."""
    if not task.cancelled():
        task.exception()


def refusal(subject: str) -> NotPermitted:
    """Make the error."""
    return NotPermitted(f"these credentials may not use {subject}")
