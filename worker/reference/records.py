"""Describe every log record, found in the source and explained here: docs/log.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import worker
from worker.reference.meanings import MEANINGS, NEVER_LITERAL
from worker.reference.tables import BY_HAND, code, page_of, table
from worker.telemetry import Said

_LEVELS = {"error": "error", "exception": "error", "warning": "warning", "info": "info", "debug": "debug"}
_RANK = ("error", "warning", "info", "debug")
_HEAD = f"""# Log records

{BY_HAND}

On stderr, one JSON object a line; text for people where stderr is a terminal (`log.format`). Each has `timestamp` (UTC), `level`, `event`, and
most have `logger`; what differs between two records of one event is in fields. Nothing of a payload is logged, and no secret. `debug` is not shown unless
`log.level` says so; what is shown at `error` is always worth a look.
"""


class Record(NamedTuple):
    """A place in the source that logs: its event, level and the fields it adds."""

    event: str
    level: str
    fields: tuple[str, ...]


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines, a table for each level."""
    yield _HEAD
    found = merged()
    for level in _RANK:
        rows = [
            (code(name), MEANINGS[name], ", ".join(code(field) for field in fields))
            for name, (at, fields) in sorted(found.items())
            if at == level
        ]
        yield from (f"## {level.capitalize()}", "")
        yield from table(("event", "what it means", "fields"), rows)


def merged() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return each event once: at the highest level it is logged at, with all fields that it may have."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for record in [*NEVER_LITERAL_RECORDS, *logged()]:
        level, fields = found.get(record.event, (record.level, ()))
        highest = min(level, record.level, key=_RANK.index)
        found[record.event] = highest, tuple(sorted({*fields, *record.fields}))
    return found


def logged() -> Iterator[Record]:
    """Find every record whose event is written out in the source of the worker."""
    for path in sorted(Path(worker.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LEVELS and node.args:
                event = _event(node.args[0])
                if event and _is_logger(node.func.value):
                    given = [word.arg for word in node.keywords if word.arg] + ["exc_info"] * (node.func.attr == "exception")
                    fields = tuple("exception" if field == "exc_info" else field for field in given)  # what the renderer makes of it
                    yield Record(event, _LEVELS[node.func.attr], fields)


def _event(first: ast.expr) -> str:
    """Return the event that a call names, empty where it is made of parts."""
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value
    if isinstance(first, ast.Attribute) and isinstance(first.value, ast.Name) and first.value.id == "Said":
        return Said[first.attr].value
    return ""


def _is_logger(owner: ast.expr) -> bool:
    """Tell whether a method is called of a logger: `self._log`, `log`, or what `logger(…)` and `get_logger(…)` give."""
    if isinstance(owner, ast.Call):
        return isinstance(owner.func, ast.Name | ast.Attribute) and ast.unparse(owner.func).endswith("logger")
    return ast.unparse(owner) in {"self._log", "log"}


NEVER_LITERAL_RECORDS = tuple(Record(name, level, fields) for name, (level, fields) in NEVER_LITERAL.items())
