"""Hold signals back until the process can act on them.

Imports next to nothing, since it must come before all that loads slowly. The kernel keeps a blocked signal, also for process 1 of a
container. There, a signal that is neither blocked nor handled is lost.
"""

from __future__ import annotations

import signal

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that ask for a stop (CONTRACT 7)."""


def hold() -> None:
    """Block the stop signals until `release`.

    Call it in the main thread, before there is another.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def release() -> None:
    """Unblock the stop signals.

    Those that came meanwhile are delivered now. Those that the parent process had blocked are unblocked, too.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
