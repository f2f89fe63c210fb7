"""Type what a page says into a shell, and hold what comes back against what the page shows.

One bash for each page, so that variables and background jobs stay; its output is a terminal of 120 columns, as a person has one. In what
is shown, `…` stands for anything within a line, and alone on a line for any number of lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

_DONE = "-- done: "
_KILLED = re.compile(r"^\S+: line \d+: +\d+ (Killed|Terminated) .*\n?", re.MULTILINE)
"""What a shell says of a job that was killed: an interactive one says it otherwise."""


class Typed(NamedTuple):
    """A command as it is typed, and what the page shows after it."""

    command: str
    shown: str


def typed(console: str) -> Iterator[Typed]:
    """Take a console block apart: `$ ` begins a command, `> ` goes on with it, everything else was printed."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        command = [lines.pop(0)]
        while lines and lines[0].startswith("> "):
            command.append(lines.pop(0)[2:])
        yield Typed("\n".join(command), "\n".join(lines))


def shows(shown: str, said: str) -> bool:
    """Tell whether what was said is what is shown."""
    pattern = ""
    for line in shown.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("…")) + r" *\n"
    return re.fullmatch(pattern, "".join(line.rstrip() + "\n" for line in said.strip("\n").splitlines())) is not None


class Shell:
    """A bash in a folder. `async with` ends it, with everything that was started in it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**environment, "COLUMNS": "120", "LINES": "50", "NO_COLOR": "1", "TERM": "dumb", "PS1": ""}
        self._bash: asyncio.subprocess.Process
        self._screen = -1
        self._count = 0

    async def __aenter__(self) -> Self:
        self._screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        attributes = termios.tcgetattr(terminal)
        attributes[1] &= ~termios.OPOST  # no carriage returns
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)
        self._bash = await asyncio.create_subprocess_exec(
            *("bash", "--noprofile", "--norc"),
            stdin=asyncio.subprocess.PIPE,
            stdout=terminal,
            stderr=terminal,
            cwd=self._folder,
            env=self._environment,
            start_new_session=True,
        )
        os.close(terminal)
        os.set_blocking(self._screen, False)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(15):
                await self._bash.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._bash.pid, signal.SIGKILL)
            os.close(self._screen)

    async def run(self, command: str, *, within: float = 60.0) -> tuple[str, int]:
        """Type a command; return what it said and how it ended."""
        self._count += 1
        script = self._folder / f".typed-{self._count:03}"
        script.write_text(command + "\n", encoding="utf-8")
        assert self._bash.stdin is not None
        self._bash.stdin.write(f". '{script}' </dev/null; printf '\\n{_DONE}%s\\n' $?\n".encode())
        await self._bash.stdin.drain()
        async with asyncio.timeout(within):
            said = await self._until_done()
        found = re.search(rf"\n{_DONE}(\d+)\n", said)
        assert found is not None, said
        return _KILLED.sub("", said[: found.start()] + said[found.end() :]), int(found[1])

    async def _until_done(self) -> str:
        """Read the screen until the command has ended."""
        loop, said = asyncio.get_running_loop(), b""
        while not re.search(rf"\n{_DONE}\d+\n".encode(), said):
            readable = asyncio.Event()
            loop.add_reader(self._screen, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._screen)
            try:
                said += os.read(self._screen, 65536)
            except OSError as gone:
                raise AssertionError(f"the shell is gone: {said.decode(errors='replace')}") from gone
        return said.decode(errors="replace")
