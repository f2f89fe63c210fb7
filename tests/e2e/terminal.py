"""Run `taskflow` at a terminal of its own, and type an answer when it asks: what a person sees and does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import sys
from pathlib import Path

from tests.e2e.commands import Said
from tests.e2e.stage import Stage
from tests.eventually import eventually

ENTER, CTRL_C, CTRL_D = "\r", "\x03", "\x04"
_SITS_DOWN = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""Makes the terminal the controlling one, without which Ctrl-C is a letter."""
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


async def at_terminal(stage: Stage, *arguments: str, question: str = "", answer: str = "", code: int = 0) -> Said:
    """Run a command at a terminal to its end, which has to be `code`; type the answer once the question is there.

    Everything that was shown is in `out`, without what moves the cursor; there is no other stream.
    """
    screen, terminal = pty.openpty()
    environment = stage.environment() | {"COLUMNS": "120", "LINES": "50", "TERM": "xterm", "NO_COLOR": "1"}
    command = (sys.executable, "-c", _SITS_DOWN, sys.executable, "-m", "nats_taskflow", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=stage.folder
    )
    os.close(terminal)
    try:
        async with asyncio.timeout(60):
            shown = ""
            if answer:
                shown = await asyncio.to_thread(_watch, screen, question)
                # Not before it reads: Python loses a Ctrl-C that comes between its last look at signals and the read, as no person can.
                await eventually(lambda: _reads(process.pid), within=30)
                os.write(screen, answer.encode())
            shown += await asyncio.to_thread(_watch, screen)
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(screen)
    said = Said(_STEERING.sub("", shown).replace("\r\n", "\n"), "", process.returncode or 0)
    assert said.code == code, f"taskflow {' '.join(arguments)}: {said}"
    assert "Traceback" not in said.out, said.out
    return said


def _watch(screen: int, until: str = "") -> str:
    """Read what is shown until it has this text in it, or until nobody writes any more."""
    shown = ""
    while not until or until not in shown:
        try:
            some = os.read(screen, 65536)
        except OSError:  # how Linux says that the last writer has gone
            return shown
        if not some:
            return shown
        shown += some.decode(errors="replace")
    return shown


def _reads(pid: int) -> bool:
    """Tell whether a process waits for its input: the first argument of its system call is the number of stdin."""
    try:
        call = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return True  # it has ended without asking, which the test will see
    return call[1:2] == ["0x0"]
