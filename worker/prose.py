"""Put text into the form that users read: numbers of things, and docstrings without what only developers have."""

from __future__ import annotations

import re

_REFERENCE = re.compile(r" \((?:(?:SEMANTICS|CONTRACT|RELIABILITY|ARCHITECTURE) R?\d|R\d)[^)]*\)")


def for_users(docstring: str) -> str:
    """Return a docstring without its indentation as users read it: a line for each paragraph, what is indented further as it stands."""
    paragraphs = _REFERENCE.sub("", docstring).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs)


def counted(number: int, one: str, many: str = "") -> str:
    """Say how many of something there are: `1 flow`, `2 flows`; `many` is the plural where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
