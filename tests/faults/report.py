"""What a fault scenario reports: one row of the table that a run ends with."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

_COLUMNS = ("scenario", "runs", "faults", "acked", "in doubt", "recovered", "lost", "duplicated", "back p50", "back p99", "seed", "note")


class Row(msgspec.Struct, kw_only=True):
    """One scenario's figures. `back`: seconds from each fault until the worker did its work again."""

    scenario: str
    seed: int
    runs: int = 1
    faults: int = 0
    acknowledged: int = 0
    in_doubt: int = 0
    recovered: int = 0
    lost: int = 0
    duplicated: int = 0
    back: list[float] = []
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts, in the order of the columns."""
        counts = (self.runs, self.faults, self.acknowledged, self.in_doubt, self.recovered, self.lost, self.duplicated)
        return (
            self.scenario,
            *map(str, counts),
            *(f"{percentile(self.back, p):.2f} s" if self.back else "-" for p in (50, 99)),
            str(self.seed),
            self.note,
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank). Raises `ValueError` where there is none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def table(rows: Iterable[Row]) -> list[str]:
    """Lay the rows out as lines of text, with a head."""
    lines = [_COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def commit() -> str:
    """Return what is checked out, so that a run can be done again."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "not a git checkout"
