"""Let a cancellation through that nats-py swallows. Light: the agents' client is made of it, too."""

from __future__ import annotations

import asyncio
from typing import Any

from nats.aio.client import Client


class HeedingClient(Client):
    """A client whose methods end when they are cancelled while they wait for room to write.

    nats-py catches the cancellation there and goes on, so that a `timeout` never ends and a task that was cancelled is for ever waited
    for. The method is private to nats-py: `tests/unit/test_heeding.py` fails when a release moves it.
    """

    async def _flush_pending(self, force_flush: bool = False) -> Any:  # noqa: FBT001, FBT002  nats-py's own signature
        """Have what is pending written."""
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return flushed
