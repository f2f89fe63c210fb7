"""Say what the figures were measured on, and read what a process costs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from nats_taskflow.bus.nats.server import find_server
from nats_taskflow.version import program_version


def facts(folder: Path) -> dict[str, Any]:
    """Return the machine, the versions, and how busy the machine is by itself."""
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    server = subprocess.run([str(find_server()), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = ("nats-py", "aiosqlite", "msgspec", "uvloop")
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "nats-server": server.rpartition(" ")[2],
        "taskflow": program_version(),
        "packages": {name: _version(name) for name in packages},
        "folder": str(folder.parent),
        "load_at_start": load(),
    }


def load() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes."""
    return [round(part, 2) for part in os.getloadavg()]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return the memory that a process holds, in bytes (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def _version(name: str) -> str:
    """Return a package's version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _lines(path: str) -> list[str]:
    """Read a file, where there is one."""
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
