"""Put text into the form that users read.

Numbers of things, and docstrings without what only developers have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TYPES = {
    "str": "text",
    "int": "a whole number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "float": "a number",
    "datetime": "a time",
}
"""What the decoder calls types, in words."""
_LINE = 64
_REFERENCE = re.compile(r" \((?:(?:SEMANTICS|CONTRACT|RELIABILITY|ARCHITECTURE) R?\d|R\d)[^)]*\)")


def for_users(docstring: str) -> str:
    """Return a docstring without its indentation as users read it.

    A line for each paragraph, what is indented further as it stands.
    """
    paragraphs = _REFERENCE.sub("", docstring).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs)


def counted(number: int, one: str, many: str = "") -> str:
    """Say how many of something there are: `1 flow`, `2 flows`.

    `many` is the plural where it is not `one` with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def shown(text: str) -> str:
    """Quote foreign text for a message: escaped, and not longer than a line."""
    return repr(text if len(text) <= _LINE else text[: _LINE - 1] + "…")


def meant(written: str, known: Iterable[str]) -> str:
    """Return the hint at the name that was probably meant, to end a sentence with.

    `; did you mean goal?`; empty where none is near.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - only for what is misspelt

    near = get_close_matches(written[:_LINE], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
