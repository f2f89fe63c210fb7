"""Stop a process for a while, as SIGSTOP does, and know that it stands still."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.eventually import eventually


async def stand_still(pid: int) -> None:
    """Stop a process, and return when none of its threads runs any more: for a moment after the signal they still do, and answer."""
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        """Tell whether every thread is."""
        try:
            states = {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()}
        except FileNotFoundError:  # a thread that has just ended: they do not all stand still
            return False
        return states == {"T"}

    await eventually(stopped)
