"""Run the command line, as `taskflow` and as `python -m worker`."""

from __future__ import annotations

import sys
from typing import NoReturn

from worker import signal_mask

_WORKER = ("run", "dev")
"""The commands that stop gracefully, and answer a signal that came while they were still loading: at once, with exit code 0."""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    if sys.argv[1:2] and sys.argv[1] in _WORKER:
        signal_mask.hold()
    else:
        signal_mask.release()
    from worker.cli import main as command_line  # noqa: PLC0415  a third of a second: see above

    command_line()


if __name__ == "__main__":
    main()
