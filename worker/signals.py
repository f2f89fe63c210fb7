"""Turn SIGTERM and SIGINT into a stop: the first asks for it, the second ends the process at once (CONTRACT 7)."""

from __future__ import annotations

import asyncio
import os
import signal

import structlog

from worker.telemetry import Said


class Stop:
    """`asked` is set by the first signal, or by `ask`."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._log = structlog.get_logger("signals")

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT on the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)

    def ask(self) -> None:
        """Ask for the stop."""
        self.asked.set()

    def _signalled(self, number: int) -> None:
        """Stop gracefully the first time; the second time somebody wants it now, and everything committed is safe anyway."""
        if self.asked.is_set():
            self._log.warning(Said.STOPPED_AT_ONCE, signal=signal.Signals(number).name)
            os._exit(128 + number)
        self.asked.set()
