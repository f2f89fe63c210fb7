"""Name this program so that another process runs it, and nothing that merely has its name."""

from __future__ import annotations

import sys


def command(*arguments: str) -> tuple[str, ...]:
    """Return what runs this program with `arguments`: the interpreter by its whole name, and nothing of the working directory (`-P`)."""
    return (sys.executable, "-P", "-m", "nats_taskflow", *arguments)
