"""Compare NATS subjects and patterns, token by token."""

from __future__ import annotations

import re

# Over-long subjects make the server drop the connection, and the client then stays closed for good (max_control_line is 4096).
MAX_SUBJECT = 1024
_PUBLISHABLE = re.compile(r"\A[^\s.*>\x00-\x1f\x7f]+(?:\.[^\s.*>\x00-\x1f\x7f]+)*\Z")


def covers(pattern: str, subject: str) -> bool:
    """Tell whether `pattern` takes everything `subject` stands for; `subject` may be a pattern itself."""
    parts = subject.split(".")
    wanted = pattern.split(".")
    for at, part in enumerate(wanted):
        if part == ">":
            return len(parts) > at
        if at >= len(parts) or parts[at] == ">":
            return False
        if part not in ("*", parts[at]):
            return False
    return len(parts) == len(wanted)


def publishable(subject: str) -> bool:
    """Tell whether a message can be published on the subject: tokens without blanks or wildcards, of bounded length."""
    return len(subject) <= MAX_SUBJECT and _PUBLISHABLE.match(subject) is not None
