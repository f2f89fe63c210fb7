"""Keep figures, and show them: a table, JSON, and a plot drawn by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Any

import msgspec

_MISSING = "—"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure. `value` None: it could not be had, and `note` says why. `base`: the figure it is shown as a ratio to."""

    id: str
    what: str
    value: float | None
    unit: str
    base: str = ""
    note: str = ""

    @property
    def group(self) -> str:
        """The section of the table."""
        return self.id.partition(".")[0]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure should be: itself, or its ratio to another; at least or at most."""

    what: str
    of: str
    to: str = ""
    least: float | None = None
    most: float | None = None

    def verdict(self, figures: dict[str, Figure]) -> tuple[float | None, str]:
        """Return the value and whether it is met."""
        value = _value(figures, self.of)
        if self.to and value is not None:
            other = _value(figures, self.to)
            value = value / other if other else None
        if value is None:
            return None, "not measured"
        met = value >= self.least if self.least is not None else value <= (self.most or 0)
        return value, "met" if met else "missed"

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"


def _value(figures: dict[str, Figure], name: str) -> float | None:
    """Look a value up."""
    return figures[name].value if name in figures else None


def ratio(figure: Figure, figures: dict[str, Figure]) -> float | None:
    """Return the figure as a ratio to its base."""
    base = _value(figures, figure.base) if figure.base else None
    return figure.value / base if figure.value is not None and base else None


def table(figures: Sequence[Figure], targets: Sequence[Target]) -> str:
    """Return everything as text."""
    known = {figure.id: figure for figure in figures}
    lines: list[str] = []
    group = ""
    groups = list(dict.fromkeys(figure.group for figure in figures))
    for figure in sorted(figures, key=lambda figure: groups.index(figure.group)):
        if figure.group != group:
            group = figure.group
            lines += ["", f"{group}", "-" * len(group)]
        part = ratio(figure, known)
        against = f"{part:8.2f} × {figure.base}" if part is not None else ""
        lines.append(f"  {figure.what:<66} {number(figure.value):>10} {figure.unit:<9} {against:<34} {figure.note}".rstrip())
    lines += ["", "targets", "-------"]
    later = []
    for target in targets:
        value, verdict = target.verdict(known)
        if value is None:
            later.append(target.what)
            continue
        lines.append(f"  {target.what:<66} {number(value):>10} {target.bound:<12} {verdict}")
    if later:
        lines.append("  not measured in this run: " + " · ".join(later))
    return "\n".join(lines).lstrip("\n")


def number(value: float | None) -> str:
    """Return a value with three significant digits or more."""
    if value is None:
        return _MISSING
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def written(folder: Path, stem: str, figures: Sequence[Figure], targets: Sequence[Target], facts: dict[str, Any]) -> list[Path]:
    """Write JSON, table and plot; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {figure.id: figure for figure in figures}
    rows = [{**msgspec.to_builtins(figure), "ratio": ratio(figure, known)} for figure in figures]
    verdicts = [{"what": t.what, "bound": t.bound, **dict(zip(("value", "verdict"), t.verdict(known), strict=True))} for t in targets]
    texts = {
        "json": json.dumps({"facts": facts, "figures": rows, "targets": verdicts}, indent=1, ensure_ascii=False),
        "txt": table(figures, targets) + "\n",
        "svg": plot([f for f in figures if f.unit == "/s" and f.value]),
    }
    paths = []
    for kind, text in texts.items():
        path = folder / f"{stem}.{kind}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def plot(figures: Sequence[Figure]) -> str:
    """Return all rates as bars on a logarithmic scale, as SVG."""
    left, row, width, bottom, top = 470, 20, 430, 1.0, 1e6
    high = 40 + row * len(figures)
    decades = [10**power for power in range(7)]

    def across(value: float) -> float:
        """Return how long a bar is."""
        return max(1.0, width * log10(max(value, bottom) / bottom) / log10(top / bottom))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{high}" font-family="sans-serif" font-size="12">'
    ]
    for decade in decades:
        x = left + across(decade)
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="22" y2="{high}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="15" text-anchor="middle" fill="#777">{decade:,}/s</text>')
    colours = {"floor": "#9aa7b4", "resumes": "#2b7bba", "peers": "#c8742b"}
    for at, figure in enumerate(figures):
        y = 26 + at * row
        assert figure.value is not None
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(figure.what)}</text>')
        colour = colours.get(figure.group, "#4f9d69")
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{across(figure.value):.0f}" height="{row - 5}" fill="{colour}"/>')
        parts.append(f'<text x="{left + across(figure.value) + 5:.0f}" y="{y + 13}">{number(figure.value)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
