"""Hold signals back until the process can act on them. Imports next to nothing, since it must come before all that loads slowly.

The kernel keeps a blocked signal, also for process 1 of a container. One that is neither blocked nor handled never reaches that.
"""

from __future__ import annotations

import signal

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that ask for a stop (CONTRACT 7)."""


def hold() -> None:
    """Hold the stop signals back until `release`. Call it in the main thread, before there is another."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def release() -> None:
    """Let the stop signals through, including those held back so far and those that the parent process had blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
