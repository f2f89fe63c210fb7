"""Hold signals back until the process can act on them; light, since it has to come before everything that takes time to load.

The kernel keeps a blocked signal, also for process 1 of a container, from which it takes any other that has no handler yet.
"""

from __future__ import annotations

import signal

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks for a stop (CONTRACT 7)."""


def hold() -> None:
    """Hold back what asks for a stop, until `release`. Call it in the main thread, before there is another one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def release() -> None:
    """Have what was held back arrive now, and what comes as it comes; also where whoever started this process had held it back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
