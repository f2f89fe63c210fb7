"""Turn docstrings into text for users: paragraphs, without references to pages that only developers have."""

from __future__ import annotations

import re

_REFERENCE = re.compile(r" \((?:(?:SEMANTICS|CONTRACT|RELIABILITY|ARCHITECTURE) R?\d|R\d)[^)]*\)")


def for_users(docstring: str) -> str:
    """Return a docstring without its indentation as users read it: a line for each paragraph, what is indented further as it stands."""
    paragraphs = _REFERENCE.sub("", docstring).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs)
