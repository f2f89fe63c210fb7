"""The version of this program, and the command that runs it in another process."""

from __future__ import annotations

import os
import sys

__version__ = "0.1.0"
"""The one place that says it: the build reads it from here (`tool.hatch.version`). Asking the installed distribution would load a mail
parser, 25 ms of every start, and say nothing where the program runs from a folder.
"""


def program_version() -> str:
    """Give the version of the program."""
    return __version__


def program_revision() -> str:
    """Give the commit that the program was built from, which the image's build says.

    `unknown` elsewhere.
    """
    return os.environ.get("BUILD_REVISION", "") or "unknown"


def command(*arguments: str) -> tuple[str, ...]:
    """Return what runs this program with `arguments`.

    The interpreter by its whole name, and nothing of the working directory (`-P`).
    """
    return (sys.executable, "-P", "-m", "nats_taskflow", *arguments)
