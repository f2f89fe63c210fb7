"""Report to systemd by sd_notify(3), and feed its watchdog.

Off where `NOTIFY_SOCKET` is not set. Nothing here can stop the worker: a datagram that cannot be sent is logged.
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
    """The service manager.

    `environ` says where it listens and how often it expects to hear; `ping` returns when the database answers.
    """

    def __init__(self, environ: Mapping[str, str], ping: Callable[[], Awaitable[None]]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._every = _interval(environ)
        self._ping = ping
        self._log = structlog.get_logger("systemd")
        # Made at the start: when the file descriptors have run out, the watchdog must still be fed.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        if self._socket is not None:
            self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature

    def on_ready(self, address: str) -> None:
        """Report that the start is over."""
        self._notify("READY=1", f"STATUS=Deciding what comes from {address}")

    def on_stop(self) -> None:
        """Report that the worker is stopping."""
        self._notify("STOPPING=1", "STATUS=Finishing what is in hand, publishing what is committed")

    async def run(self) -> None:
        """Feed the watchdog until cancelled, twice per interval.

        It is fed only while event loop and database are alive.

        Returns at once where there is no watchdog.
        """
        if self._socket is None or self._every is None:
            return
        loop = asyncio.get_running_loop()
        answer = asyncio.ensure_future(self._ping())
        try:
            while True:
                began = loop.time()
                await asyncio.sleep(self._every)
                why = _reason_not_to_feed(loop.time() - began - self._every, answer)
                if why is None:
                    self._notify("WATCHDOG=1")
                else:
                    self._log.error("watchdog_not_fed", why=why)
                if answer.done():  # a thread that hangs is not pinged a second time: the pings would pile up
                    answer = asyncio.ensure_future(self._ping())
        finally:
            answer.cancel()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _notify(self, *assignments: str) -> None:
        """Send one datagram.

        One that is refused is logged and not repeated: the next one says more.
        """
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            self._log.warning("systemd_not_told", what=assignments[0], why=error.strerror)


def _reason_not_to_feed(lag: float, answer: asyncio.Future[None]) -> str | None:
    """Return why the watchdog must not be fed, or None."""
    if lag >= MAX_LAG:
        return f"the event loop came round {lag:.1f} s late"
    if not answer.done():
        return "the database has not answered"
    failure = answer.exception()
    return f"the database answers with {failure}" if failure is not None else None


def _address(text: str) -> str:
    """Return the address for `sendto`.

    A path, or an abstract name, which the variable writes with `@` for the leading NUL.
    """
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _interval(environ: Mapping[str, str]) -> float | None:
    """Return half the watchdog's interval in seconds.

    None where it is off or meant for another process.
    """
    pid, usec = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if pid not in {"", str(os.getpid())} or not usec.isdecimal() or int(usec) == 0:
        return None
    return int(usec) / 2_000_000
