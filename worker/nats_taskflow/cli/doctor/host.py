"""What `taskflow doctor` looks at on this machine: the database and its disk, limits, the service manager, the health port."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nats_taskflow.cli.db.check import build_evidence
from nats_taskflow.cli.verdict import Verdict
from nats_taskflow.errors import Refusal
from nats_taskflow.store.invariants.findings import gather
from nats_taskflow.store.sqlite.lock import holder
from nats_taskflow.store.sqlite.place import check_place, file_system
from nats_taskflow.store.sqlite.snapshot import find_database, open_snapshot, schema_of
from nats_taskflow.store.sqlite.statements import migrations
from nats_taskflow.text import counted
from nats_taskflow.version import program_version

if TYPE_CHECKING:
    from nats_taskflow.config import Config

_LITTLE, _HARDLY_ANY = 1 << 30, 128 << 20
_FEW_FILES = 1024


def examine_host(config: Config, worker: Mapping[str, Any]) -> Iterator[Verdict]:
    """Look at everything that needs no network. `worker`: what the worker that answers says of itself, nothing where none does."""
    yield versions()
    yield from database(config, _database_of(worker) or config.store.path)
    yield limits()
    yield service_manager()


def versions() -> Verdict:
    """Say which program this is, in the four numbers that matter."""
    parts = ("wire 1", f"database schema {len(migrations())}", "config 1", f"Python {platform.python_version()}")
    return Verdict("versions", "ok", f"taskflow {program_version()}, {', '.join(parts)}, SQLite {sqlite3.sqlite_version}")


def _database_of(worker: Mapping[str, Any]) -> str | None:
    """Return the database of the worker, where it lies on this machine: that worker holds its lock."""
    where = Path(worker.get("store", ""))
    return str(where) if where.is_file() and holder(where) == worker["pid"] else None


def database(config: Config, where: str) -> Iterator[Verdict]:
    """Look at the database, its disk, and whether somebody uses it."""
    try:
        path = find_database(where)
        free = shutil.disk_usage(path.parent).free
        level = "fail" if free < _HARDLY_ANY else "warn" if free < _LITTLE else "ok"
        yield Verdict("disk", level, f"{free >> 20:,} MiB free beside {path}", "make room on its disk" if level != "ok" else "")
        check_place(where)
        schema, newest = schema_of(path), len(migrations())
        with open_snapshot(where) as opened:
            runs = f"worker pid {opened.worker} runs on it" if opened.worker is not None else "no worker runs on it"
            mode = opened.database.execute("PRAGMA journal_mode").fetchone()[0]
            findings = gather(build_evidence(config, opened.database), path=str(opened.path), worker=opened.worker, quick=True)
    except Refusal as no:
        yield Verdict("database", "warn", str(no), "right where the worker runs on another machine; else set store.path")
        yield from _port(config, running=False)
        return
    kind = file_system(path.parent) or "unknown"
    fix = "" if schema == newest else "stop the worker, then taskflow db migrate; the next start does it, too"
    text = f"schema {schema} of {newest}, journal {mode}, on {kind}"
    yield Verdict("database", "ok" if schema == newest else "warn", text, fix)
    others = path.stat().st_mode & 0o077
    fix = f"chmod 600 {path}: others may open it now" if others else ""
    yield Verdict("database file", "warn" if others else "ok", f"{path}; {runs}", fix)
    bad = ", ".join(f"{one.number} {one.name}" for one in findings.violations)
    text = f"db check --quick: {bad} does not hold" if bad else f"db check --quick: everything holds over {counted(findings.flows, 'flow')}"
    yield Verdict("invariants", "fail" if bad else "ok", text, "taskflow db check says more, and what to do" if bad else "")
    yield from _port(config, running=opened.worker is not None)


def _port(config: Config, *, running: bool) -> Iterator[Verdict]:
    """Look whether the health port can be had, where no worker has it."""
    if config.http.address is None or running:
        return
    host, port = config.http.address
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as taken:
        fix = "a worker on another database may have it; else set http.bind (127.0.0.1:0 takes a free one)"
        yield Verdict("health port", "warn", f"{host}:{port} cannot be had: {taken.strerror}", fix)
    else:
        yield Verdict("health port", "ok", f"{host}:{port} is free")


def limits() -> Verdict:
    """Look whether the system lets the worker open what it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < _FEW_FILES and soft != resource.RLIM_INFINITY
    text = f"{soft:,} open files (at most {hard:,})" if hard != resource.RLIM_INFINITY else f"{soft:,} open files"
    return Verdict("limits", "warn" if few else "ok", text, f"ulimit -n {_FEW_FILES}; in a unit LimitNOFILE=65536" if few else "")


def service_manager() -> Verdict:
    """Say what systemd has told this process; a shell is not told anything."""
    told = [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY") if os.environ.get(name)]
    return Verdict("service manager", "ok", f"systemd gives {', '.join(told)}" if told else "not started by systemd (as in any shell)")
