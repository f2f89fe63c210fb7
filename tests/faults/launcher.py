"""Run the worker with a fault in it, as the environment says: `python -m tests.faults.launcher run`.

`FLOW_FAILPOINT=point:nth:action` does something at the nth time a point is reached (`tests.faults.failpoints`), `FLOW_PLANTED=name` plants
a bug that the checks have to find (`tests.faults.planted`), `FLOW_CLOCK=file` adds the seconds in the file to the wall clock,
`FLOW_SYNCHRONOUS=NORMAL` leaves out the sync of each commit. All of it is put into the program from outside: nothing in `worker/` knows
of it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.faults import failpoints, planted

LAUNCHER = (sys.executable, "-m", "tests.faults.launcher", "run")


def shift_clock(file: Path) -> None:
    """Have the worker's wall clock run as many seconds ahead of the real one (behind it, where negative) as the file says, live."""
    from nats_taskflow import wiring

    real = wiring.wall_clock

    def shifted() -> int:
        """Return the shifted time in microseconds since the epoch."""
        return real() + int(float(file.read_text(encoding="ascii") or "0") * 1_000_000)

    wiring.wall_clock = shifted


def loosen(synchronous: str) -> None:
    """Open the database with a setting that loses commits at a power cut: the negative control of the harness."""
    from nats_taskflow.store.sqlite import opening

    value = ("OFF", "NORMAL").index(synchronous)
    opening._SETTINGS = tuple(
        (f"synchronous = {synchronous}", value) if text.startswith("synchronous") else (text, wanted) for text, wanted in opening._SETTINGS
    )


def main() -> None:
    """Plant what the environment asks for and run the command line."""
    if spec := os.environ.get("FLOW_FAILPOINT"):
        failpoints.arm(spec)
    if name := os.environ.get("FLOW_PLANTED"):
        planted.plant(name)
    if file := os.environ.get("FLOW_CLOCK"):
        shift_clock(Path(file))
    if synchronous := os.environ.get("FLOW_SYNCHRONOUS"):
        loosen(synchronous)
    from nats_taskflow.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
