"""Read the documentation as data: every page, and every fenced block of it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>[^>]+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: its page, the line it begins at, the comment above it, its language and its text."""

    page: str
    line: int
    mark: str
    language: str
    text: str

    @property
    def first(self) -> str:
        """Its first line: what an exception names it by."""
        return self.text.partition("\n")[0]


def pages() -> list[str]:
    """List every page that people read, by its path in the repository."""
    folders = ("docs", "examples", "bench", "deploy")
    found = [
        "README.md",
        "CONTRIBUTING.md",
        *(str(path.relative_to(ROOT)) for name in folders for path in sorted((ROOT / name).rglob("*.md"))),
    ]
    return [page for page in found if ".venv" not in page and "node_modules" not in page]


def blocks(page: str) -> Iterator[Block]:
    """Give the fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["mark"] or "", found["language"], textwrap.dedent(found["text"]))
