"""Text layout for a terminal's width. Pure.

Tables have a line for each row; sentences and commands are broken between words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

GAP = "  "
_NARROWEST = 8
_TOKEN = re.compile(r"""(?:'[^']*'|"[^"]*"|\S)+""")


class Column(NamedTuple):
    """A column of a table.

    An `elastic` one may be cut short where the terminal is narrow; the others never are.
    """

    name: str
    elastic: bool


def cell_width(text: str) -> int:
    """Return how many columns a text takes.

    Wide characters take two, combining ones none.
    """
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def cut(text: str, width: int) -> str:
    """Cut a text to `width` columns, with an ellipsis where it is longer."""
    if cell_width(text) <= width:
        return text
    start, room = "", width - 1
    for letter in text:
        room -= cell_width(letter)
        if room < 0:
            break
        start += letter
    return f"{start.rstrip()}…"


def pad(text: str, width: int) -> str:
    """Return the text with spaces behind it, up to `width` columns."""
    return text + " " * (width - cell_width(text))


def widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], screen: int | None) -> list[int]:
    """Return the width of each column.

    It is as wide as it needs. On a screen the elastic ones share what the others leave.
    """
    needed = [max(cell_width(cell) for cell in (column.name, *(row[at] for row in rows))) for at, column in enumerate(columns)]
    if screen is None:
        return needed
    elastic = [at for at, column in enumerate(columns) if column.elastic]
    room = screen - sum(needed) - len(GAP) * (len(columns) - 1) + sum(needed[at] for at in elastic)
    for remaining, at in zip(range(len(elastic), 0, -1), sorted(elastic, key=needed.__getitem__), strict=True):
        needed[at] = min(needed[at], max(room // remaining, _NARROWEST))
        room -= needed[at]
    return needed


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], screen: int | None) -> list[list[str]]:
    """Return the heading and the rows as cells of fitting widths.

    Joined by `GAP`, the cells of a row make a line.
    """
    flat = [[" ".join(cell.split()) for cell in row] for row in rows]
    fitting = widths(columns, flat, screen)
    lines = [[column.name for column in columns], *flat]
    return [[pad(cut(cell, width), width) for cell, width in zip(line, fitting, strict=True)] for line in lines]


def wrap(text: str, screen: int | None, indent: str = "") -> str:
    """Break a sentence between words, indenting all lines but the first.

    A word that is too long stays whole.
    """
    return text if screen is None else _fold(text.split(), screen - len(indent), indent, "")


def command_lines(command: str, screen: int | None, indent: str = "") -> str:
    """Break a command so that it can be copied.

    It is broken between words, never inside quotes, with a backslash at the end of a line.
    """
    return command if screen is None else _fold(_TOKEN.findall(command), screen - len(indent) - 2, indent, " \\")


def _fold(words: Sequence[str], room: int, indent: str, tail: str) -> str:
    """Fill lines with as many words as fit; each but the last ends with `tail`."""
    lines: list[str] = []
    for word in words:
        if lines and cell_width(lines[-1]) + 1 + cell_width(word) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return f"{tail}\n{indent}".join(lines)
