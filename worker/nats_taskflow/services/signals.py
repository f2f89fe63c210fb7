"""Turn SIGTERM, SIGINT and SIGHUP into an orderly stop (CONTRACT 7).

The first one asks for the stop, the second one ends the process at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from nats_taskflow.services import signal_mask

T = TypeVar("T")


class StopSignal:
    """The request to stop: `requested` is set by the first signal, or by `request`."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self._insisted = False
        self._log = structlog.get_logger("signals")

    def listen(self) -> None:
        """Handle the signals on the running loop.

        That includes those that `signal_mask` has held back since the process began.
        """
        loop = asyncio.get_running_loop()
        for number in signal_mask.STOPS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup(1), to outlive the terminal
            loop.add_signal_handler(number, self._on_signal, number)
        signal_mask.release()

    def request(self) -> None:
        """Ask for the stop."""
        self.requested.set()

    async def before(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do the work and return its result, or None if a stop is asked for first.

        In that case the work was cancelled, and has ended.
        """
        task = asyncio.ensure_future(work)
        requested = asyncio.ensure_future(self.requested.wait())
        try:
            await asyncio.wait({task, requested}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            requested.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _on_signal(self, number: int) -> None:
        """Ask for the stop. The second time, end the process at once.

        Somebody insists then, and everything committed is safe.
        """
        if number != signal.SIGHUP:  # a terminal that closes may send it twice, or beside a SIGTERM
            if self._insisted:
                self._log.warning("worker.stopped_at_once", signal=signal.Signals(number).name)
                os._exit(128 + number)
            self._insisted = True
        self.requested.set()
