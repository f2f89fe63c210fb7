"""What one look of `taskflow doctor` gives."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """`level`: ok, warn or fail. `fix`: what to do, empty where all is well."""

    name: str
    level: str
    text: str
    fix: str = ""
