"""Tell systemd how the worker is: the datagrams of sd_notify(3), and the keep-alives of sd_watchdog_enabled(3).

Off where `NOTIFY_SOCKET` is not set. Nothing here can stop the worker: who cannot be told is told again at the next look.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

import structlog

MAX_LAG = 5.0
"""Seconds that the event loop may come round late and still count as alive (RELIABILITY 3, row 27)."""


class Systemd:
    """The service manager. `environ` says where it listens and how often it wants to hear; `ping` answers when the database does."""

    def __init__(self, environ: Mapping[str, str], ping: Callable[[], Awaitable[None]]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._every = _interval(environ)
        self._ping = ping
        self._log = structlog.get_logger("systemd")
        # Made at the start: when the file descriptors have run out, the watchdog must still be fed.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        if self._socket is not None:
            self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature

    def ready(self, status: str) -> None:
        """Say that starting is over."""
        self._tell("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the worker is on its way out."""
        self._tell("STOPPING=1", f"STATUS={status}")

    async def watch(self) -> None:
        """Feed the watchdog until cancelled, twice as often as it asks for; but only while loop and database are alive."""
        if self._socket is None or self._every is None:
            return
        loop = asyncio.get_running_loop()
        answer = asyncio.ensure_future(self._ping())
        try:
            while True:
                began = loop.time()
                await asyncio.sleep(self._every)
                why = _ailment(loop.time() - began - self._every, answer)
                if why is None:
                    self._tell("WATCHDOG=1")
                else:
                    self._log.error("watchdog_not_fed", why=why)
                if answer.done():  # a thread that hangs is not asked a second time: the questions would pile up
                    answer = asyncio.ensure_future(self._ping())
        finally:
            answer.cancel()

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *assignments: str) -> None:
        """Send one datagram; one that is refused is reported, for there is nobody to try again for."""
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as deaf:
            self._log.warning("systemd_not_told", what=assignments[0], why=deaf.strerror)


def _ailment(lag: float, answer: asyncio.Future[None]) -> str | None:
    """Say why the watchdog must not be fed, or None."""
    if lag >= MAX_LAG:
        return f"the event loop came round {lag:.1f} s late"
    if not answer.done():
        return "the database has not answered"
    failure = answer.exception()
    return f"the database answers with {failure}" if failure is not None else None


def _address(text: str) -> str:
    """Return the address for `sendto`: a path, or an abstract name, which the variable writes with `@` for the leading NUL."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _interval(environ: Mapping[str, str]) -> float | None:
    """Return half of what the watchdog waits for, in seconds; None where it is off or meant for another process."""
    for_whom, asked = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if for_whom not in {"", str(os.getpid())} or not asked.isdecimal() or int(asked) == 0:
        return None
    return int(asked) / 2_000_000
