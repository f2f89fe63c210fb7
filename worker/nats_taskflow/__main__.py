"""Run the command line, as `taskflow` and as `python -m nats_taskflow`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nats_taskflow.services import signal_mask

_WORKER = ("run", "dev")
"""The commands that stop gracefully, and answer a signal that came while they were still loading: at once, with exit code 0."""
_COLLECT_AFTER = (20_000, 20, 20)
"""How many new objects make Python look for reference cycles (its own default: 700, 10, 10).

What a batch of hundreds makes is mostly alive until it is committed, and what is imported stays for good: each look goes through all of it
in vain. That was a quarter of the time of a message, and a twelfth of the start of a command.
"""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    _occupy_standard_streams()
    gc.set_threshold(*_COLLECT_AFTER)
    if _command(sys.argv[1:]) in _WORKER:
        signal_mask.hold()
    else:
        signal_mask.release()
    from nats_taskflow.cli import main as command_line  # noqa: PLC0415  a third of a second: see above

    command_line()


def _command(words: Sequence[str]) -> str:
    """Return the command that is typed.

    Options of the connection may stand before it, each with a value: `taskflow -s URL run`.
    """
    left = iter(words)
    for word in left:
        if not word.startswith("-"):
            return word
        if "=" not in word if word.startswith("--") else len(word) == 2:  # noqa: PLR2004 - one letter: the value is the next word
            next(left, None)
    return ""


def _occupy_standard_streams() -> None:
    """Have descriptors 0 to 2 lead somewhere.

    A closed one would go to the next file, the database, and what is said be written there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free; what is written there fails as on a closed one


if __name__ == "__main__":
    main()
