"""The checks of `taskflow doctor` on this machine.

They cover the database and its disk, limits, the service manager, and the health port.
"""

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
from nats_taskflow.store.invariants.findings import Findings, gather
from nats_taskflow.store.sqlite.lock import holder
from nats_taskflow.store.sqlite.place import check_place, file_system
from nats_taskflow.store.sqlite.snapshot import find_database, open_snapshot, schema_of
from nats_taskflow.store.sqlite.statements import migrations
from nats_taskflow.text import counted
from nats_taskflow.version import program_version

if TYPE_CHECKING:
    from nats_taskflow.config import Config

_MIN_FREE, _WANTED_FREE = 128 << 20, 1 << 30
"""Bytes on the disk below which it fails, or is warned of."""
_WANTED_FILES = 1024


def examine_host(config: Config, worker: Mapping[str, Any]) -> Iterator[Verdict]:
    """Check everything that needs no network.

    `worker`: what the worker reports of itself, empty where none answers.
    """
    yield _versions()
    yield from _database(config, _local_database(worker) or config.store.path)
    yield _limits()
    yield _service_manager()


def _versions() -> Verdict:
    parts = ("wire 1", f"database schema {len(migrations())}", "config 1", f"Python {platform.python_version()}")
    return Verdict("versions", "ok", f"taskflow {program_version()}, {', '.join(parts)}, SQLite {sqlite3.sqlite_version}")


def _local_database(worker: Mapping[str, Any]) -> str | None:
    """Return the worker's database if it is on this machine.

    It is on this machine where the worker that answered holds its lock.
    """
    where = Path(worker.get("store", ""))
    return str(where) if where.is_file() and holder(where) == worker["pid"] else None


def _database(config: Config, where: str) -> Iterator[Verdict]:
    """Check the database, its disk, and whether a worker uses it."""
    try:
        path = find_database(where)
        free = shutil.disk_usage(path.parent).free
        level = "fail" if free < _MIN_FREE else "warn" if free < _WANTED_FREE else "ok"
        yield Verdict("disk", level, f"{free >> 20:,} MiB free beside {path}", "make room on its disk" if level != "ok" else "")
        check_place(where)
        schema, newest = schema_of(path), len(migrations())
        with open_snapshot(where) as opened:
            runs = f"worker pid {opened.worker} runs on it" if opened.worker is not None else "no worker runs on it"
            mode = opened.database.execute("PRAGMA journal_mode").fetchone()[0]
            findings = gather(build_evidence(config, opened.database), path=str(opened.path), worker=opened.worker, quick=True)
    except Refusal as refusal:
        yield Verdict("database", "warn", str(refusal), "right where the worker runs on another machine; else set store.path")
        yield from _port(config, running=False)
        return
    schema_text = f"schema {schema} of {newest}, journal {mode}, on {file_system(path.parent) or 'unknown'}"
    migrate = "" if schema == newest else "stop the worker, then taskflow db migrate; the next start does it, too"
    yield Verdict("database", "warn" if migrate else "ok", schema_text, migrate)
    protect = f"chmod 600 {path}: others may open it now" if path.stat().st_mode & 0o077 else ""
    yield Verdict("database file", "warn" if protect else "ok", f"{path}; {runs}", protect)
    yield _invariants(findings)
    yield from _port(config, running=opened.worker is not None)


def _invariants(findings: Findings) -> Verdict:
    """Judge the findings on the invariants."""
    violated = ", ".join(f"{violation.number} {violation.name}" for violation in findings.violations)
    if violated:
        return Verdict("invariants", "fail", f"db check --quick: {violated} does not hold", "taskflow db check says more, and what to do")
    return Verdict("invariants", "ok", f"db check --quick: everything holds over {counted(findings.flows, 'flow')}")


def _port(config: Config, *, running: bool) -> Iterator[Verdict]:
    """Check that the health port is free, unless a worker has it."""
    if config.http.address is None or running:
        return
    host, port = config.http.address
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        fix = "a worker on another database may have it; else set http.bind (127.0.0.1:0 takes a free one)"
        yield Verdict("health port", "warn", f"{host}:{port} cannot be had: {error.strerror}", fix)
    else:
        yield Verdict("health port", "ok", f"{host}:{port} is free")


def _limits() -> Verdict:
    """Check that the worker may open as many files as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < _WANTED_FILES and soft != resource.RLIM_INFINITY
    text = f"{soft:,} open files (at most {hard:,})" if hard != resource.RLIM_INFINITY else f"{soft:,} open files"
    return Verdict("limits", "warn" if few else "ok", text, f"ulimit -n {_WANTED_FILES}; in a unit LimitNOFILE=65536" if few else "")


def _service_manager() -> Verdict:
    """List what systemd gives this process."""
    variables = [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY") if os.environ.get(name)]
    return Verdict(
        "service manager", "ok", f"systemd gives {', '.join(variables)}" if variables else "not started by systemd (as in any shell)"
    )
