"""Run the worker under strace: count its system calls, kill it at the k-th, let one fail or take long, read what it did in what order.

Nothing of the worker knows of it. `-D` keeps the worker our own child, with its own exit code.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import msgspec
import pytest

_LINE = re.compile(r"^(?P<thread>\d+) +(?P<at>[\d.]+) (?P<name>[a-z_0-9]+)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?P<thread>\d+) +(?P<at>[\d.]+) <\.\.\. (?P<name>[a-z_0-9]+) resumed>(?P<rest>.*)$")


@cache
def _usable() -> str:
    """Say why processes cannot be traced here; empty when they can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is missing: install the package strace"
    tried = subprocess.run([strace, "-D", "-f", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if tried.returncode or tried.stderr:
        return f"strace cannot trace here (it needs ptrace): {tried.stderr.strip()}"
    return ""


def require_strace() -> None:
    """Skip the test where processes cannot be traced."""
    if why := _usable():
        pytest.skip(why)


class Call(msgspec.Struct, frozen=True):
    """A system call as the log has it, at the place where it returned; `text` is its arguments and result, `at` a wall-clock time."""

    thread: int
    at: float
    name: str
    text: str


def tracing(log: Path, *calls: str, only: tuple[Path, ...] = (), inject: str = "", shown: int = 32) -> tuple[str, ...]:
    """Return what goes before the worker's command: log `calls` (those on the files `only`, if any), and `inject` a fault into them.

    `shown`: how many bytes of what is written the log shows.
    """
    aimed = [part for path in only for part in ("-P", str(path))]
    # Quicker by far where nothing is injected; where something is, strace 6.1 does not do it under --seccomp-bpf.
    how = ["-e", f"inject={','.join(calls)}:{inject}"] if inject else ["--seccomp-bpf"]
    return (
        "strace",
        "-D",
        "-f",
        "-qq",
        "-y",
        "-ttt",
        "-s",
        str(shown),
        "-o",
        str(log),
        "-e",
        f"trace={','.join(calls)}",
        "-e",
        "signal=none",
        *aimed,
        *how,
    )


def logged(log: Path) -> list[Call]:
    """Read a log: the calls in the order in which they returned."""
    begun: dict[tuple[int, str], str] = {}
    found = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if whole := _LINE.match(line):
            thread, name, rest = int(whole["thread"]), whole["name"], whole["rest"]
            if rest.endswith("<unfinished ...>"):
                begun[thread, name] = rest.removesuffix("<unfinished ...>")
            else:
                found.append(Call(thread, float(whole["at"]), name, rest))
        elif end := _RESUMED.match(line):
            thread, name = int(end["thread"]), end["name"]
            found.append(Call(thread, float(end["at"]), name, begun.pop((thread, name), "") + end["rest"]))
    return found


def most_by_one_thread(log: Path, name: str) -> int:
    """Count the calls of the thread that makes the most: strace counts `when=K` for each thread by itself."""
    return max(Counter(call.thread for call in logged(log) if call.name == name).values(), default=0)
