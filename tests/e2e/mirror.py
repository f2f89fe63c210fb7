"""Say as JSON how a process was started, read stdin to its end, and end as the first argument says: what `test_zygote` compares."""

from __future__ import annotations

import json
import locale
import os
import random
import resource
import secrets
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import uuid_utils
from nats.nuid import NUID

STATUS = ("Umask", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Threads", "Cpus_allowed")
"""What proc(5) says of a process and a start decides."""


def start() -> dict[str, Any]:
    """Return everything that a start gives to a process."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {
        "arguments": sys.argv,
        "module": [__name__, __spec__.name, sys.modules["__main__"].__file__],
        "path": sys.path,
        "environ": dict(os.environ),
        "folder": str(Path.cwd()),
        "descriptors": sorted(fd.name for fd in Path("/proc/self/fd").iterdir() if fd.exists()),
        "streams": [
            (each.name, each.encoding, each.errors, each.line_buffering, each.write_through, each.newlines)  # type: ignore[union-attr]
            for each in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "interpreter": [sys.flags, sys.warnoptions, sys.getswitchinterval(), str(signal.getsignal(signal.SIGINT))],
        "locale": [locale.setlocale(locale.LC_ALL), sys.getfilesystemencoding(), time.tzname],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
        "status": {name: status[name] for name in STATUS},
        "family": [os.getppid(), *("its own" if each == os.getpid() else each for each in (os.getpgrp(), os.getsid(0)))],
        "threads": threading.active_count(),
    }


def dice() -> list[str]:
    """Return what no other process may draw too; of a UUIDv7 the part without the time."""
    return [
        f"{uuid_utils.uuid7().int & (1 << 62) - 1:x}",
        str(uuid_utils.uuid4()),
        str(uuid.uuid4()),
        str(random.random()),
        secrets.token_hex(),
        NUID().next().decode(),
    ]


def end(how: str) -> None:
    """End in one of the ways in which programs do."""
    match how:
        case "raise":
            raise LookupError("as asked")
        case "interrupt":
            raise KeyboardInterrupt
        case "say":
            sys.exit("as asked")
        case "thread":  # which Python waits for
            threading.Timer(0.1, print, ["later"]).start()
        case code if code.isdigit():
            sys.exit(int(code))
        case _:
            return


def main() -> None:
    """Do all that."""
    sys.stdout.write(json.dumps({"pid": os.getpid(), "start": start(), "dice": dice()}) + "\n")
    sys.stdout.flush()
    sys.stderr.write(f"{sys.stdin.read()} was read\n")
    end(sys.argv[1])
    sys.stdout.write("not flushed\n")


if __name__ == "__main__":
    main()
