"""Write Markdown tables."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nats_taskflow.text import for_users

BY_HAND = "Written by `make docs` from the program itself: do not edit."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Give the lines of a table and an empty one after it."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def cell(text: str) -> str:
    """Return text as one cell takes it."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return text as code, nothing for nothing."""
    return f"`{cell(text)}`" if text else ""


def page_of(lines: Iterable[str]) -> str:
    """Return a page."""
    return "\n".join(lines).rstrip() + "\n"


def prose(thing: Any) -> str:
    """Return a docstring as users read it."""
    return for_users(inspect.getdoc(thing) or "")
